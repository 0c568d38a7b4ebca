"""Who broke the second half of a step: the loss, a gradient on its way back, an optimizer slot, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import leaves
from gradrecipes.core.trace.autopsy import Offender, OffenderKind, in_words, listed
from gradrecipes.training.autopsy.arrays import numbers_of
from gradrecipes.training.autopsy.call_recorder import CapturedTensor
from gradrecipes.training.autopsy.forward import LOW_PRECISION, first_source, owners_of
from gradrecipes.training.autopsy.step import Step, unscaled_is_finite

SQUARE_OVERFLOWS = math.sqrt(float(np.finfo(np.float32).max))  # 1.84e19: an entry whose square float32 cannot hold


def loss_offenders(step: Step, explained: frozenset[int] | None) -> list[Offender]:
    """Return what made the loss not finite, where finite predictions and targets went into it.

    Args:
        step: The step.
        explained: The samples that an earlier offender accounts for; None for all of them.
    """
    if step.failed == "loss" or step.raised:
        return _refused(step)
    if step.loss is None or math.isfinite(step.loss) or explained is None:
        return []
    added = {name: value for name, value in step.additional_losses.items() if not math.isfinite(value)}
    if added and not explained:
        return [_additional(name, value) for name, value in added.items()]
    broken = broken_samples(step)
    new = tuple(sample for sample in broken if sample not in explained)
    if explained and not new:
        return []
    name = ", ".join(name for name, value in step.named_losses.items() if not math.isfinite(value)) or "loss"
    found = str(step.sample_losses[new[0]] if new else step.loss)
    words = in_words(found)
    if new:
        sentence = (
            f"The loss of {listed(new)} is {words}, though predictions, targets and sample weights there are finite. "
            "Look into the loss for a log(0), a division by 0 or an exponential: clip what goes into it, or compute "
            "from logits."
        )
    else:
        sentence = (
            f"Each sample alone has a finite loss, but that of the whole batch is {words}: the sum over the batch "
            "overflows, or the loss compares samples with each other. Scale the targets, or guard the loss."
        )
    return [Offender(OffenderKind.LOSS, name, found, sentence, samples=new)]


def broken_samples(step: Step) -> tuple[int, ...]:
    """Return the samples whose own loss is not finite."""
    return tuple(
        sample
        for sample, loss in enumerate(step.sample_losses)
        if not math.isfinite(loss) and sample not in step.raised
    )


def _refused(step: Step) -> list[Offender]:
    samples = tuple(step.raised)
    if not samples or len(samples) == step.batch.size:
        return []  # an error of the model or of the batch's shape; it stands in the notes
    targets = [numbers for numbers in (step.batch.y,) if isinstance(numbers, tf.Tensor)]
    found = float(np.ravel(targets[0].numpy()[samples[0]])[0]) if targets and targets[0].dtype.is_integer else "error"
    sentence = (
        f"The loss refuses {listed(samples)} and takes all others: {step.raised[samples[0]]} Compare the targets with "
        "what the loss and the last layer expect, for one the number of classes."
    )
    return [Offender(OffenderKind.TARGET, "y", found, sentence, samples=samples)]


def _additional(name: str, value: float) -> Offender:
    return Offender(
        kind=OffenderKind.LOSS,
        name=f"{name}/added_loss",
        found=str(value),
        sentence=f"What {name} adds to the loss (regularizer, add_loss) is {in_words(value)}, while its weights are "
        "finite: most often a sum of squares that overflows because the weights have grown too large.",
        layer=name,
    )


def gradient_offenders(
    step: Step, explained: frozenset[int] | None, guilty: Callable[[], Iterable[int]]
) -> list[Offender]:
    """Return the first gradient on the way back that is not finite though what came before it is.

    Args:
        step: The step.
        explained: The samples that an earlier offender accounts for; None for all of them.
        guilty: Finds the samples behind a gradient that does not tell; it may cost many steps.
    """
    if explained is None:
        return []
    captured = next((one for one in step.recorder.backward if one.gradient is not None and one.gradient.found), None)
    variable = _first_variable(step, captured)
    if variable is None and captured is None:
        return []
    samples = captured.gradient.samples if variable is None else ()
    if not samples and not explained:
        samples = tuple(guilty())
    new = tuple(sample for sample in samples if sample not in explained)
    if explained and not new:
        return []
    offender = _of_variable(step, variable, new) if variable is not None else _of_output(step, captured, new)
    return [offender]


def _first_variable(step: Step, captured: CapturedTensor | None) -> int | None:
    """Return the variable whose gradient broke before any captured gradient did, the last layer's first."""
    backward = step.recorder.backward
    until = len(backward) if captured is None else backward.index(captured)
    reached = {id(one.call.layer): place for place, one in enumerate(backward) if not one.enters}  # its last call
    candidates = []
    for place in step.broken_gradients:
        variable = step.variables[place]
        holders = [layer for layer in _heard_layers(step) if any(variable is weight for weight in layer.weights)]
        smallest = min(holders, key=lambda layer: len(layer.weights), default=None)
        if captured is None:
            candidates.append((reached.get(id(smallest), until), place))
        elif reached.get(id(smallest), until) < until and smallest is not captured.call.layer:
            candidates.append((reached[id(smallest)], place))
    return min(candidates)[1] if candidates else None


def _heard_layers(step: Step) -> list[keras.layers.Layer]:
    return list({id(call.layer): call.layer for call in step.recorder.calls}.values())


def _of_variable(step: Step, place: int, samples: tuple[int, ...]) -> Offender:
    variable, numbers = step.variables[place], step.numbers[place]
    layer = owners_of(step.model).get(id(variable))
    sentence = (
        f"The loss is finite, and so is the gradient that reaches {layer}, but its gradient with respect to "
        f"{variable.path} has {numbers.bad} of {numbers.size} entries that are not finite. "
        f"{_advice(step, numbers.found, numbers.dtype)}"
    )
    return Offender(
        OffenderKind.GRADIENT, variable.path, numbers.found, sentence, layer, samples, numbers.entries, numbers.dtype
    )


def _of_output(step: Step, captured: CapturedTensor, samples: tuple[int, ...]) -> Offender:
    numbers, call = captured.gradient, captured.call
    name = first_source(captured)
    if captured.enters:
        layer = call.name
        where = f"on the way back through {layer} ({type(call.layer).__name__}), whose own output's gradient is finite"
    elif call.parent is None:
        layer, where = None, "in the derivative of the loss"
    elif any(one.gradient is None for one in call.parent.outputs):
        layer, where = call.parent.name, f"on the way back through what {call.parent.name}.call does after {call.name}"
    else:
        layer, where = call.parent.name, f"on the way back through the arithmetic of {call.parent.name}.call"
    sentence = (
        f"The forward pass and the loss are finite, but the gradient with respect to the output of {name} becomes "
        f"{numbers.words} {where}. {_advice(step, numbers.found, numbers.dtype)}"
    )
    return Offender(
        OffenderKind.GRADIENT, name, numbers.found, sentence, layer, samples, numbers.entries, numbers.dtype
    )


def _advice(step: Step, found: str, dtype: str) -> str:
    low = any(layer.compute_dtype in LOW_PRECISION for layer in _heard_layers(step))
    if low and step.scale != 1 and unscaled_is_finite(step):
        return (
            f"Without the loss scale of {step.scale:g} it is finite: float16 overflowed. A LossScaleOptimizer skips "
            "such a step and lowers the scale, so a single one is nothing to worry about."
        )
    if found == "nan":
        return (
            f"A slope is infinite there and is multiplied by 0 ({dtype}): sqrt, a norm or a power below 1 at exactly "
            "0, log at 0, or the branch of a where that is not taken. Add a small constant inside it."
        )
    return f"It overflows {dtype}: a slope like 1/x near 0, or factors that multiply from layer to layer."


def slot_offenders(model: keras.Model) -> list[Offender]:
    """Return the variables of the optimizer that are not finite before the step."""
    return [
        _slot(
            model,
            variable,
            "It was so before this step: an earlier gradient was not finite, or too large to be "
            "squared. Restore the optimizer from before that, or make it anew.",
        )
        for variable in _broken(_optimizer_variables(model))
    ]


def update_offenders(step: Step) -> list[Offender]:
    """Apply the finite gradients, and return what is not finite afterwards; within `preserve_state` only."""
    model = step.model
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built or not step.gradients:
        return []
    pairs = [(one, v) for one, v in zip(step.gradients, step.variables, strict=True) if one is not None]
    if not pairs:
        return []
    optimizer.apply_gradients(pairs)
    owners = owners_of(model)
    at = f" at the learning rate {rate:.3g}" if (rate := _learning_rate(optimizer)) is not None else ""
    found = [
        _slot(
            model,
            variable,
            f"It was finite before this step and the gradient is finite too; the update{at} breaks it "
            "(squares above 3.4e38 are inf), and the weights follow a step later. Clip the gradient.",
        )
        for variable in _broken(_optimizer_variables(model))
    ]
    for variable in _broken(model.trainable_variables):
        numbers = numbers_of(variable, -1)
        sentence = (
            f"The weight and its gradient are finite; the update itself{at} makes {numbers.bad} of {numbers.size} "
            "entries not finite. Look at the learning rate, the optimizer's epsilon and its slots."
        )
        layer = owners.get(id(variable))
        found.append(
            Offender(
                OffenderKind.WEIGHT, variable.path, numbers.found, sentence, layer, (), numbers.entries, numbers.dtype
            )
        )
    return found


def _learning_rate(optimizer: Any) -> float | None:
    try:
        return float(leaves(optimizer)[0].learning_rate)
    except (AttributeError, TypeError, ValueError):  # an optimizer of several has no single rate
        return None


def _optimizer_variables(model: keras.Model) -> list[Any]:
    optimizer = getattr(model, "optimizer", None)
    return [] if optimizer is None else list(optimizer.variables)


def _broken(variables: list[Any]) -> list[Any]:
    return [one for one in variables if (numbers := numbers_of(one, -1)) is not None and numbers.found]


def _slot(model: keras.Model, variable: Any, why: str) -> Offender:
    numbers = numbers_of(variable, -1)
    owners = owners_of(model)
    weights = [w for w in model.trainable_variables if w.path.replace("/", "_") in variable.path.replace("/", "_")]
    weight = max(weights, key=lambda one: len(one.path), default=None)
    return Offender(
        kind=OffenderKind.OPTIMIZER_SLOT,
        name=variable.path,
        found=numbers.found,
        sentence=f"The optimizer's own memory holds {numbers.words} in {numbers.bad} of {numbers.size} entries. {why}",
        layer=None if weight is None else owners.get(id(weight)),
        entries=numbers.entries,
        dtype=numbers.dtype,
    )
