"""Find out where a training step broke first, from the model, its weights before the step, and the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step, sublayers
from gradrecipes.core.findings import counted
from gradrecipes.core.trace.autopsy import Autopsy, LayerReading, Offender, OffenderKind, Operation, listed
from gradrecipes.training.autopsy.arrays import Numbers, numbers_of
from gradrecipes.training.autopsy.backward import (
    broken_samples,
    gradient_offenders,
    loss_offenders,
    slot_offenders,
    update_offenders,
)
from gradrecipes.training.autopsy.call_recorder import Call
from gradrecipes.training.autopsy.forward import (
    Harm,
    broken_by_the_forward_pass,
    data_offenders,
    output_offenders,
    owners_of,
    weight_offenders,
)
from gradrecipes.training.autopsy.operations import broken_operation
from gradrecipes.training.autopsy.outliers import outlying_offenders
from gradrecipes.training.autopsy.step import (
    SAMPLES_AT_MOST,
    Batch,
    Step,
    guilty_samples,
    run_step,
    sample_gradient_norms,
)
from gradrecipes.training.recovery.model_state import State, load_temporarily, preserve_state


def autopsy(
    model: keras.Model,
    batch: Any,
    *,
    weights: State = None,
    optimizer_variables: State = None,
    loss_limit: float | None = None,
) -> Autopsy:
    """Name what broke a training step first: weight, input, layer output, target, loss, gradient or optimizer slot.

    The step is run once more, eagerly and layer by layer, whatever mode the training runs in. The model is
    afterwards, bit by bit, what it was before: weights, moving statistics, seeds, metrics and optimizer. What is
    not finite but does no harm (a mask of -inf, a label that the loss leaves out) is noted, not blamed.

    Args:
        model: The compiled model.
        batch: What `train_step` gets: `x`, `(x, y)` or `(x, y, sample_weight)`, each possibly nested.
        weights: The values before the step, in the order of `model.variables` (seeds included, so that dropout
            repeats itself) or of `model.weights`, or by variable path. None for those that the model has now.
        optimizer_variables: The same for `model.optimizer.variables`.
        loss_limit: A finite loss beyond this is an outlier, and the samples behind it are named.

    Returns:
        An `Autopsy`. A part that could not be analysed stands in its notes; a broken model raises nothing.

    Raises:
        RuntimeError: It was called while a graph is traced.

    Example:
        >>> bad = x[:8].copy()
        >>> bad[5, 2] = np.nan
        >>> result = autopsy(model, (bad, y[:8]))
        >>> result.first.kind.value, result.first.samples, result.first.entries
        ('input', (5,), ((5, 2),))
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            "`autopsy` looks at numbers, so it must run eagerly. It was called while a graph was being traced. "
            "Call it outside of tf.function: from a callback, or after fit."
        )
    data = Batch.of(batch)
    notes = _build(model, data)
    with preserve_state(model):
        notes += load_temporarily(model, weights, optimizer_variables)
        return _Examination(model, data, loss_limit, notes).result()


class _Examination:
    """Hold what the parts of one autopsy share."""

    def __init__(self, model: keras.Model, batch: Batch, loss_limit: float | None, notes: list[str]):
        self.model, self.batch, self.loss_limit, self.notes = model, batch, loss_limit, notes
        self.notes += _about(model)
        self._guilty: list[int] | None = None

    def result(self) -> Autopsy:
        """Run the step and judge it."""
        model, batch = self.model, self.batch
        finite = {id(one) for one in model.weights if (read := numbers_of(one, -1)) is not None and not read.found}
        with preserve_state(model):
            step = run_step(model, batch, each_sample=True)
            moved = [one for one in broken_by_the_forward_pass(model, finite) if not one.trainable]
        if step.failed:
            self._note_failure(step)
        elif batch.size > SAMPLES_AT_MOST:
            self.notes.append(f"The batch has {batch.size} samples, too many to compute the loss of each alone.")
        harm = self._harm(step, moved)
        broken = self._broken(step, harm, moved)
        if not broken and not step.failed:
            broken = self._try("the optimizer's update", lambda: self._update(step))
        operation = self._operation(broken)
        if operation is not None and not broken:
            broken = [_of_the_train_step(model, operation)]
        if broken and any(isinstance(layer, keras.layers.BatchNormalization) for layer in sublayers(model)):
            self.notes.append("BatchNormalization joins the samples: one that is not finite makes all after it so.")
        norms = self._norms(step) if not step.failed and harm.none else []
        outlying = self._try("the finite outliers", lambda: outlying_offenders(step, norms, self.loss_limit, broken))
        offenders = tuple([*broken, *outlying])
        return Autopsy(
            offenders=offenders,
            layers=tuple(self._try("the readings by layer", lambda: layer_readings(step))),
            batch_size=batch.size,
            loss=math.nan if step.loss is None else step.loss,
            sample_losses=tuple(step.sample_losses),
            sample_gradient_norms=tuple(norms),
            reached=tuple(self._try("how far it got", lambda: what_was_reached(step))) if offenders else (),
            notes=tuple(self.notes),
            complete=not step.failed,
            operation=operation,
        )

    def _operation(self, broken: list[Offender]) -> Operation | None:
        """Return the innermost operation that breaks, where neither the data nor a weight was broken before."""
        own = has_own_train_step(self.model)
        if broken and broken[0].kind not in (OffenderKind.LAYER_OUTPUT, OffenderKind.LOSS, OffenderKind.GRADIENT):
            return None
        if not broken and not own:
            return None
        batch = self.batch
        data = keras.utils.pack_x_y_sample_weight(batch.x, batch.y, batch.sample_weight)
        return broken_operation(self.model, data, own_train_step=own)

    # -- judging -----------------------------------------------------------------------------------
    def _harm(self, step: Step, moved: list[Any]) -> Harm:
        if moved or step.failed == "forward" or (step.failed and not step.raised):
            return Harm(None)
        rows = {sample for one in step.recorder.backward if one.gradient for sample in one.gradient.samples}
        hurt = {*broken_samples(step), *step.raised, *rows}
        if hurt:
            return Harm(hurt)
        if step.loss is None or not math.isfinite(step.loss):
            return Harm(None)
        if any(one.gradient and one.gradient.found for one in step.recorder.backward) or step.broken_gradients:
            return Harm(self.guilty() or None)
        return Harm(())

    def _broken(self, step: Step, harm: Harm, moved: list[Any]) -> list[Offender]:
        offenders: list[Offender] = []

        def add(what: str, judge: Callable[[], tuple[list[Offender], list[str]]]) -> None:
            found = self._try(what, judge)
            if found:
                offenders.extend(found[0])
                self.notes.extend(found[1])

        def data(kind: OffenderKind) -> None:
            add(f"the {kind.value}s", lambda: data_offenders(kind, self.batch, harm))

        add("the weights", lambda: weight_offenders(self.model, harm, self.batch.size))
        data(OffenderKind.INPUT)
        offenders += self._try("the outputs of the layers", lambda: output_offenders(step, harm))
        if moved and not offenders:
            offenders += [_moved(variable, owners_of(self.model).get(id(variable))) for variable in moved]
        data(OffenderKind.TARGET)
        data(OffenderKind.SAMPLE_WEIGHT)
        explained = _explained(step, offenders)
        offenders += self._try("the loss", lambda: loss_offenders(step, explained))
        explained = _explained(step, offenders)
        if explained is not None:
            explained |= frozenset(broken_samples(step))
        offenders += self._try("the gradients", lambda: gradient_offenders(step, explained, self.guilty))
        offenders += self._try("the optimizer", lambda: slot_offenders(self.model))
        return offenders

    def _update(self, step: Step) -> list[Offender]:
        with preserve_state(self.model):
            return update_offenders(step)

    def _norms(self, step: Step) -> list[float]:
        if not step.sample_tensors or step.raised:
            return []
        norms = self._try("the gradients of single samples", lambda: sample_gradient_norms(step))
        if missing := sum(map(math.isnan, norms)):
            self.notes.append(f"The gradient of {missing} samples, those of the smallest loss, was not measured.")
        return norms

    def guilty(self) -> list[int]:
        """Return the samples that break a gradient by themselves; sought once."""
        if self._guilty is None:
            self._guilty = guilty_samples(self.model, self.batch, lambda step: bool(step.broken_gradients))
            if not self._guilty and self.batch.size > 1:
                self.notes.append("No sample breaks the gradient by itself; it takes the batch as a whole.")
        return self._guilty

    # -- what does not work ------------------------------------------------------------------------
    def _try(self, what: str, judge: Callable[[], Iterable[Any]]) -> Any:
        try:
            return judge()
        except Exception as error:  # a part that fails must not take the others with it
            self.notes.append(f"{what} could not be analysed: {type(error).__name__}: {str(error)[:200]}".capitalize())
            return []

    def _note_failure(self, step: Step) -> None:
        part = {"forward": "forward pass", "loss": "loss", "backward": "backward pass"}[step.failed]
        where = ""
        if step.failed == "forward" and (call := step.recorder.innermost) is not None:
            where = f", in {call.name}"
        self.notes.append(f"The {part} could not be run{where}; what comes after it was not analysed. {step.error}")


def _explained(step: Step, offenders: list[Offender]) -> frozenset[int] | None:
    """Return the samples that offenders, or outputs that they broke, account for; None for all of them."""
    if not offenders:
        return frozenset()
    if any(not offender.samples for offender in offenders):
        return None
    roots = [call for call in step.recorder.calls if call.parent is None]
    rows = {sample for call in roots for captured in call.outputs for sample in captured.numbers.samples}
    return frozenset(rows.union(*(offender.samples for offender in offenders)))


def _moved(variable: Any, layer: str | None) -> Offender:
    numbers = numbers_of(variable, -1)
    return Offender(
        kind=OffenderKind.WEIGHT,
        name=variable.path,
        found=numbers.found or "nan",
        sentence="The forward pass turns this variable from finite to not finite, although no output shows it. "
        "The training goes on, but the model will fail where the variable is used: in evaluation.",
        layer=layer,
        dtype=numbers.dtype,
    )


def _build(model: keras.Model, batch: Batch) -> list[str]:
    if model.built and model.weights:
        return []
    try:
        model(batch.x, training=False) if batch.size else None
    except Exception:  # the step itself will meet the same error, and tell it
        return []
    return ["The model had no weights yet; they were created for the analysis."] if model.weights else []


def _about(model: keras.Model) -> list[str]:
    notes = []
    if has_own_train_step(model):
        notes.append(
            f"{type(model).__name__} has a train_step of its own; what was analysed is model(x, training=True), "
            "model.compute_loss and the gradient of that."
        )
    if not getattr(model, "compiled", False):
        notes.append("The model is not compiled, so it has no loss and no optimizer to look at.")
    return notes


def _of_the_train_step(model: keras.Model, operation: Operation) -> Offender:
    """Return the offender of a train step of the user's own whose arithmetic breaks outside of all layers."""
    sentence = (
        f"The train step of {model.name!r} breaks outside of its layers: {operation}. Keep what goes into it away from "
        "there: add a small constant, clip, or compute from logits."
    )
    kind = OffenderKind.GRADIENT if operation.backward else OffenderKind.LOSS
    return Offender(kind, "the train step", "nan", sentence)


def layer_readings(step: Step) -> list[LayerReading]:
    """Return a reading of every layer within the model that was captured, in the order in which they finished."""
    calls: dict[str, list[Call]] = {}
    for captured in step.recorder.forward:
        call = captured.call
        if not captured.enters and call.parent is not None and call not in calls.setdefault(call.name, []):
            calls[call.name].append(call)
    weights = _weight_gradients(step)
    return [_reading(name, made, step.scale, weights.get(name, math.nan)) for name, made in calls.items()]


def what_was_reached(step: Step) -> list[str]:
    """Return, in sentences, which outputs, losses and gradients are not finite."""
    sentences = []
    layers = [reading for reading in layer_readings(step) if reading.nonfinite_share > 0]
    if layers:
        last = f" to {layers[-1].layer}" if len(layers) > 1 else ""
        sentences.append(f"Outputs that are not finite: {counted(len(layers), 'layer')}, from {layers[0].layer}{last}.")
    if step.loss is not None and not math.isfinite(step.loss):
        hurt = [sample for sample, loss in enumerate(step.sample_losses) if not math.isfinite(loss)]
        sentences.append(f"The loss is {step.loss}" + (f", by {listed(hurt)}." if hurt else "."))
    if broken := step.broken_gradients:
        sentences.append(f"Gradients that are not finite: {len(broken)} of {len(step.variables)} weights.")
    return sentences


def _reading(name: str, calls: list[Call], scale: float, weight_gradient_norm: float) -> LayerReading:
    inputs = [captured.numbers for call in calls for captured in call.inputs]
    outputs = [captured.numbers for call in calls for captured in call.outputs]
    gradients = [captured.gradient for call in calls for captured in call.outputs if captured.gradient is not None]
    size = sum(numbers.size for numbers in outputs)
    return LayerReading(
        layer=name,
        kind=type(calls[0].layer).__name__,
        dtype=outputs[0].dtype,
        input_rms=_rms(inputs),
        output_rms=_rms(outputs),
        output_max=max(numbers.largest for numbers in outputs),
        nonfinite_share=sum(numbers.bad for numbers in outputs) / size if size else 0.0,
        output_gradient_norm=_norm(gradients) / scale,
        weight_gradient_norm=weight_gradient_norm,
    )


def _weight_gradients(step: Step) -> dict[str, float]:
    owners = owners_of(step.model)
    by_layer: dict[str, list[Numbers]] = {}
    for variable, numbers in zip(step.variables, step.numbers, strict=False):
        if numbers is not None:
            by_layer.setdefault(owners.get(id(variable), ""), []).append(numbers)
    return {name: _norm(numbers) / step.scale for name, numbers in by_layer.items()}


def _rms(read: Iterable[Numbers]) -> float:
    read = list(read)
    finite = sum(numbers.size - numbers.bad for numbers in read)
    return math.sqrt(sum(numbers.squares for numbers in read) / finite) if finite else math.nan


def _norm(read: list[Numbers]) -> float:
    if not read:
        return math.nan
    if any(numbers.found for numbers in read):
        return math.inf
    return math.sqrt(sum(numbers.squares for numbers in read))
