"""What broke between the batch and the outputs: a weight, an input, or a layer with finite inputs and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.core.trace.autopsy import Offender, OffenderKind, listed
from gradrecipes.training.autopsy.arrays import ENTRIES_KEPT, Numbers, dense, leaves, numbers_of
from gradrecipes.training.autopsy.call_recorder import Call, CapturedTensor, origin, time_step, unique_names
from gradrecipes.training.autopsy.step import Batch, Step

LOW_PRECISION = ("float16", "bfloat16")


class Harm:
    """Which samples of a batch are hurt, so that a NaN which a model survives by design is not blamed.

    Args:
        samples: The samples whose loss or gradient is not finite; None where single samples cannot be told.
    """

    def __init__(self, samples: Iterable[int] | None):
        self.samples = None if samples is None else frozenset(samples)

    @property
    def none(self) -> bool:
        """Whether the step is finite from end to end."""
        return self.samples == frozenset()

    def survived(self, samples: Iterable[int]) -> bool:
        """Return whether what is not finite in these samples left at least one of them unhurt."""
        samples = set(samples)
        if self.samples is None:
            return False
        return self.none or bool(samples and not samples <= self.samples)

    def guess(self, samples: tuple[int, ...]) -> tuple[int, ...]:
        """Return the samples, or the hurt ones where an array does not tell which."""
        return samples or tuple(sorted(self.samples or ()))


def weight_offenders(model: keras.Model, harm: Harm, batch_size: int) -> tuple[list[Offender], list[str]]:
    """Return the weights that are not finite before the step, and notes on those that do no harm."""
    offenders, notes = [], []
    owners = owners_of(model)
    for variable in model.weights:
        numbers = numbers_of(variable, -1)
        if numbers is None or numbers.found is None:
            continue
        statistic = variable.path.rsplit("/", 1)[-1].startswith("moving_")
        constant = not variable.trainable and not statistic and "nan" not in _kinds(variable)
        if constant and harm.survived(range(batch_size)):
            notes.append(f"{variable.path} holds {numbers.words}, which the model seems to mean: the step survives it.")
            continue
        share = f"{numbers.bad} of its {numbers.size} entries"
        offenders.append(
            Offender(
                kind=OffenderKind.WEIGHT,
                name=variable.path,
                found=numbers.found,
                sentence=f"The weight was broken before this step began: {share} are not finite, so an earlier step, "
                "a loaded file or a damaged memory is to blame, not this batch. Go back to weights that are finite.",
                layer=owners.get(id(variable)),
                entries=numbers.entries,
                dtype=numbers.dtype,
            )
        )
    return offenders, notes


def broken_by_the_forward_pass(model: keras.Model, finite: set[int]) -> list[Any]:
    """Return the weights that were finite before the forward pass, by id, and are not after it."""
    now = ((variable, numbers_of(variable, -1)) for variable in model.weights if id(variable) in finite)
    return [variable for variable, numbers in now if numbers is not None and numbers.found]


def data_offenders(kind: OffenderKind, batch: Batch, harm: Harm) -> tuple[list[Offender], list[str]]:
    """Return the arrays of the batch that are not finite, and notes on those that do no harm."""
    name, structure, advice = {
        OffenderKind.INPUT: ("x", batch.x, "Find these rows in the data and drop or impute them"),
        OffenderKind.TARGET: ("y", batch.y, "Find these labels in the data and drop them"),
        OffenderKind.SAMPLE_WEIGHT: ("sample_weight", batch.sample_weight, "Mend how the weights are computed"),
    }[kind]
    offenders, notes = [], []
    for path, array in leaves(name, structure):
        numbers = numbers_of(array, batch.size)
        if numbers is None or numbers.found is None:
            continue
        if harm.survived(numbers.samples):
            notes.append(
                f"{path} holds {numbers.words} in {listed(numbers.samples) if numbers.samples else 'places'}; "
                "the step survives that, so the model seems to know it."
            )
            continue
        where = f" at {path}{list(numbers.entries[0])}" if numbers.entries[0] else ""
        sentence = f"The batch itself holds {numbers.words}{where}: {numbers.bad} of {numbers.size} entries are not "
        sentence += f"finite. {advice}; no optimizer or clipping can help against it."
        offenders.append(
            Offender(kind, path, numbers.found, sentence, None, numbers.samples, numbers.entries, numbers.dtype)
        )
    return offenders, notes


def output_offenders(step: Step, harm: Harm) -> list[Offender]:
    """Return, in the order of computation, the places that made something not finite out of what was finite."""
    return list(_outputs(step, harm))


def _outputs(step: Step, harm: Harm) -> Iterator[Offender]:
    broken_before = False
    blamed: set[tuple[str, str]] = set()
    for captured in step.recorder.forward:
        if not _bad(captured, harm):
            continue
        offender = None
        if captured.source is None:
            if captured.enters and not broken_before:
                offender = _at_entrance(step, captured, harm)
            elif not captured.enters and _made_here(captured.call, harm):
                offender = _made_by(captured, harm)
        broken_before = True
        if offender is not None and (offender.kind, offender.name) not in blamed:
            blamed.add((offender.kind, offender.name))
            yield offender


def _bad(captured: CapturedTensor, harm: Harm) -> bool:
    return bool(captured.numbers.found) and not harm.survived(captured.numbers.samples)


def _made_here(call: Call, harm: Harm) -> bool:
    if any(_bad(captured, harm) for captured in call.inputs):
        return False
    if any(_bad(captured, harm) for child in call.children for captured in (*child.inputs, *child.outputs)):
        return False
    return not any((read := numbers_of(weight, -1)) is not None and read.found for weight in call.layer.weights)


def _at_entrance(step: Step, captured: CapturedTensor, harm: Harm) -> Offender | None:
    """Judge what was not finite when it entered a call, though nothing that was captured before was broken."""
    call, numbers = captured.call, captured.numbers
    low = numbers.dtype in LOW_PRECISION and numbers.found != "nan"
    if call.parent is None or low:
        offender = _cast_input(step, captured)
        if offender is not None or call.parent is None:
            return offender
    if low:
        return _output_offender(
            call,
            captured,
            harm,
            f"What enters {call.name} was finite and became {numbers.words} in {numbers.dtype}, which "
            f"{_limit(numbers)}. Normalize before this layer, or give it the dtype float32 or bfloat16.",
        )
    return _output_offender(
        call.parent,
        captured,
        harm,
        f"The arithmetic in {call.parent.name}.call before it calls {call.name} makes {numbers.words} out of finite "
        "numbers. Look there for a division, a log, a square root or an exponential without a guard.",
    )


def _cast_input(step: Step, captured: CapturedTensor) -> Offender | None:
    if any((read := numbers_of(array, -1)) is not None and read.found for _, array in leaves("x", step.batch.x)):
        return None  # the batch was blamed already
    numbers = captured.numbers
    limit = float(tf.as_dtype(numbers.dtype).max)
    for path, array in leaves("x", step.batch.x):
        values = dense(array)
        if values is None or values.dtype.kind in "USOb" or values.size != numbers.size:
            continue
        beyond = np.argwhere(np.abs(values.astype(np.float64)) > limit)
        if len(beyond):
            value = float(values[tuple(beyond[0])])
            return Offender(
                kind=OffenderKind.INPUT,
                name=path,
                found=value,
                sentence=f"The batch holds {value:.4g}, which {numbers.dtype} cannot hold (it {_limit(numbers)}): it "
                f"becomes {numbers.words} as it enters {captured.call.name}. Scale the inputs, or compute in float32 "
                "or bfloat16.",
                samples=tuple(int(index) for index in np.unique(beyond[:, 0])),
                entries=tuple(tuple(int(index) for index in entry) for entry in beyond[:ENTRIES_KEPT]),
                dtype=numbers.dtype,
            )
    return None


def _output_offender(call: Call, captured: CapturedTensor, harm: Harm, sentence: str) -> Offender:
    numbers = captured.numbers
    return Offender(
        kind=OffenderKind.LAYER_OUTPUT,
        name=call.name,
        found=numbers.found,
        sentence=sentence,
        layer=call.name,
        samples=harm.guess(numbers.samples),
        entries=numbers.entries,
        dtype=numbers.dtype,
    )


def _made_by(captured: CapturedTensor, harm: Harm) -> Offender:
    call, numbers = captured.call, captured.numbers
    dtype = call.layer.compute_dtype
    limit = float(tf.as_dtype(dtype).max) if dtype in LOW_PRECISION else np.inf
    weights = [(variable, read) for variable in call.layer.weights if (read := numbers_of(variable, -1)) is not None]
    for variable, read in weights:
        if read.largest > limit:
            return Offender(
                kind=OffenderKind.WEIGHT,
                name=variable.path,
                found=read.largest,
                sentence=f"The weight holds {read.largest:.4g}, which {dtype} cannot hold: it becomes inf where "
                f"{call.name} computes with it. Lower the learning rate, or compute in float32 or bfloat16.",
                layer=call.name,
                samples=harm.guess(numbers.samples),
                dtype=dtype,
            )
    given = f"its inputs reach {max((one.numbers.largest for one in call.inputs), default=0.0):.3g}"
    if weights:
        given += f", its weights {max(read.largest for _, read in weights):.3g}"
    if numbers.found == "nan":
        why = "inside it something like 0/0, inf - inf, or the log or root of a negative number happens"
    else:
        why = f"the result overflows {numbers.dtype}, which {_limit(numbers)}, or something is divided by 0 there"
    repeated = f", in its call number {call.number} counted from 0" if call.number else ""
    if (moment := time_step(call)) is not None:
        repeated = f", at time step {moment} counted from 0"
    return _output_offender(
        call,
        captured,
        harm,
        f"{call.name} ({type(call.layer).__name__}) is the first to give {numbers.words}{repeated}, though what it was "
        f"given is finite: {given}; {why}. {numbers.bad} of {numbers.size} entries of its output are not finite.",
    )


def first_source(captured: CapturedTensor) -> str:
    """Return a name for a tensor: the layer that it comes out of, or `x` for what enters the model."""
    made = origin(captured)
    return "x" if made.enters and made.call.parent is None else made.call.name


def owners_of(model: keras.Model) -> dict[int, str]:
    """Return the name of the smallest layer that holds each variable, by the variable's id."""
    owners: dict[int, tuple[int, str]] = {}
    layers = [model, *sublayers(model)]
    names = unique_names(layers)
    cells = {id(layer.cell) for layer in layers if hasattr(layer, "cell")}  # the RNN is what its user has named
    for layer in layers:
        for variable in layer.weights if id(layer) not in cells else ():
            if id(variable) not in owners or len(layer.weights) <= owners[id(variable)][0]:
                owners[id(variable)] = (len(layer.weights), names[id(layer)])
    return {key: name for key, (_, name) in owners.items()}


def _limit(numbers: Numbers) -> str:
    return f"ends at {float(tf.as_dtype(numbers.dtype).max):.4g}"


def _kinds(variable: Any) -> set[str]:
    values = dense(variable).astype(np.float64)
    return {str(value) for value in np.unique(values[~np.isfinite(values)])}
