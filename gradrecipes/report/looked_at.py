"""What a diagnosis looked at, in sentences: so that a clean bill says what it covers."""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import LossReading, SignalReading
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.outcome.verdict import BROKEN, verdict
from gradrecipes.diagnosis.registry import rules
from gradrecipes.report.wording import number

ARRAYS_NAMED = 4


def looked_at(trace: Trace) -> list[tuple[str, str]]:
    """Return (part, what was seen there) for everything that was measured."""
    found = [
        ("Data", _data(trace.probes.data)),
        ("Validation data", _data(trace.probes.validation)),
        ("Model", _structure(trace.description)),
        ("Signal", _signal(trace.probes.signal)),
        ("Loss function", _loss(trace.probes.loss)),
        ("Trial" if trace.probes.trial else "Training", _steps(trace)),
        ("Rules", f"{len(rules())} rules were asked" if trace.probes or len(trace) else ""),
    ]
    return [(part, words) for part, words in found if words]


def _data(data: DataReading | None) -> str:
    if data is None:
        return ""
    arrays = [*data.inputs, *data.targets]
    seen = f"{data.samples:,} samples{'' if data.complete else ' of more'}"
    named = "; ".join(_array(array) for array in arrays[:ARRAYS_NAMED])
    more = f"; {len(arrays) - ARRAYS_NAMED} arrays more" if len(arrays) > ARRAYS_NAMED else ""
    return f"{seen}: {named}{more}" if named else seen


def _array(array: ArrayReading) -> str:
    shape = " x ".join(map(str, array.shape)) or "one number"
    words = f"{array.name} ({shape}, {array.dtype})"
    if array.unreadable:
        return f"{words}: {array.unreadable}"
    if array.unique and array.integer_valued:
        words += f", {array.unique} distinct values"
    elif array.mean is not None:
        words += f", mean {number(array.mean)}, standard deviation {number(array.std)}"
    bad = array.nonfinite
    return f"{words}, {bad:,} entries not finite" if bad else f"{words}, all finite"


def _structure(structure: Description) -> str:
    parts = []
    if structure.depth is not None:
        parts.append(f"{structure.depth} layers with weights one behind the other, {structure.skips} skips")
    parts += [f"{count} x {kind}" for kind, count in structure.normalizations.items()]
    for output in structure.outputs[:ARRAYS_NAMED]:
        if output.loss:
            logits = " from logits" if output.from_logits else ""
            parts.append(f"{output.loss}{logits} on {output.activation or 'unknown'} output {output.name}")
    return ", ".join(parts)


def _signal(signal: SignalReading | None) -> str:
    layers = () if signal is None else signal.layers
    if not layers:
        return ""
    sizes = [layer.output_rms for layer in layers if layer.output_rms]
    words = f"one batch through {len(layers)} layers"
    if sizes:
        words += f": outputs of root mean square {number(min(sizes))} to {number(max(sizes))}"
    norms = [layer.output_gradient_norm for layer in layers if layer.output_gradient_norm]
    norms = [norm for norm in norms if math.isfinite(norm)]
    return words + (f", gradients of norm {number(min(norms))} to {number(max(norms))}" if norms else "")


def _loss(loss: LossReading | None) -> str:
    points = () if loss is None else loss.points
    if not points:
        return ""
    bad = sum(not point.finite for point in points)
    return f"evaluated at {len(points)} kinds of predictions, {'all finite' if not bad else f'{bad} not finite'}"


def _steps(trace: Trace) -> str:
    if not len(trace):
        return ""
    trial = trace.probes.trial or TrialReading()
    seen = verdict(trace)
    batches = f" over {trial.batches} batches" if trial.batches else ""
    words = f"{len(trace):,} steps{batches}"
    if seen.state == BROKEN:
        return f"{words}, broken off at step {seen.step}"
    if np.isfinite(seen.start) and np.isfinite(seen.end):
        words += f": the loss went from {number(seen.start)} to {number(seen.end)}"
        words += f" (best constant guess: {number(seen.baseline)})" if np.isfinite(seen.baseline) else ""
    return words
