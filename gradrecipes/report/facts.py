"""What a report shows beside the findings: what is known of the run, what was looked at, what was tried."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradrecipes.core.findings import counted
from gradrecipes.core.trace import OUTCOMES, Trace
from gradrecipes.core.trace.data_reading import ArrayReading, DataReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import LossReading, SignalReading
from gradrecipes.core.trace.trace import Event
from gradrecipes.core.trace.trial_reading import OutputTrial, TrialReading, VariationResult, variation_of
from gradrecipes.diagnosis.outcome import BROKEN, fixes, verdict
from gradrecipes.diagnosis.registry import rules
from gradrecipes.report.findings import number

TOPICS = (
    ("model", "Model"),
    ("loss", "Loss"),
    ("batch_size", "Batch size"),
    ("precision", "Precision"),
    ("keras", "Keras"),
    ("tensorflow", "TensorFlow"),
)
LAYER_COLUMNS = ("name", "kind", "activation", "initializer", "fan_in", "units", "weight_std", "parameters")


def facts(trace: Trace) -> list[tuple[str, str]]:
    """Return (label, value) pairs about a run; what is not known is left out."""
    description = trace.description
    rows = [("Recorded", _recorded(trace))]
    optimizer = description.optimizer
    if optimizer is not None:
        settings = [f"{key}={value(item)}" for key, item in optimizer.settings.items() if item not in (None, False)]
        rows.append(("Optimizer", f"{optimizer.name}({', '.join(settings)})"))
        schedule = "" if optimizer.schedule is None else f"{optimizer.schedule}, "
        if optimizer.learning_rate is not None:
            rows.append(("Learning rate", f"{schedule}{value(optimizer.learning_rate)}"))
    topics = [(label, getattr(description, name)) for name, label in TOPICS]
    return rows + [(label, value(item)) for label, item in topics if item not in (None, "")]


def layer_rows(trace: Trace) -> list[list[str]]:
    """Return one row of strings for each described layer, in the order of `LAYER_COLUMNS`."""
    cells = ([getattr(layer, column) for column in LAYER_COLUMNS] for layer in trace.description.layers)
    return [["–" if cell is None else value(cell) for cell in row] for row in cells]


def value(item: Any) -> str:
    """Return a value for people: numbers with four significant digits."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return str(item)
    return str(item) if isinstance(item, int) else number(item)


@dataclass(frozen=True)
class EventCount:
    """How often one kind of event happened for one reason, with the first and the last.

    Args:
        kind: Kind of the events.
        reason: Their reason; empty when there is none.
        count: How many there are.
        first: The earliest.
        last: The latest.
    """

    kind: str
    reason: str
    count: int
    first: Event
    last: Event


def event_counts(trace: Trace) -> list[EventCount]:
    """Return the events of a run counted by kind and reason, in the order in which they first happened."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in trace.events:
        groups.setdefault((event.kind, event.reason), []).append(event)
    return [EventCount(kind, reason, len(events), events[0], events[-1]) for (kind, reason), events in groups.items()]


def _recorded(trace: Trace) -> str:
    steps = len(trace)
    epochs = len(set(trace.steps["epoch"].tolist()))
    skipped = Counter(trace.steps["outcome"][trace.skipped].tolist())
    text = f"{counted(steps, 'step')} in {counted(epochs, 'epoch')}, {counted(len(trace.layers), 'layer')}, "
    text += counted(len(trace.samples), "sample")
    if skipped:
        reasons = ", ".join(f"{count} {OUTCOMES.get(code, 'unknown outcome')}" for code, count in skipped.items())
        text += f"; {counted(sum(skipped.values()), 'step')} skipped ({reasons})"
    return text


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
    seen = f"{counted(data.samples, 'sample')}{'' if data.complete else ' of more'}"
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
        parts.append(
            f"{counted(structure.depth, 'layer')} with weights one behind the other, {counted(structure.skips, 'skip')}"
        )
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
    words = f"one batch through {counted(len(layers), 'layer')}"
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
    found = f"{bad} not finite" if bad else "all finite"
    return f"evaluated at {counted(len(points), 'kind')} of predictions, {found}"


def _steps(trace: Trace) -> str:
    if not len(trace):
        return ""
    trial = trace.probes.trial or TrialReading()
    seen = verdict(trace)
    batches = f" over {counted(trial.batches, 'batch', plural='batches')}" if trial.batches else ""
    words = f"{counted(len(trace), 'step')}{batches}"
    if seen.state == BROKEN:
        return f"{words}, broken off at step {seen.step}"
    if np.isfinite(seen.start) and np.isfinite(seen.end):
        words += f": the loss went from {number(seen.start)} to {number(seen.end)}"
        words += f" (best constant prediction: {number(seen.baseline)})" if np.isfinite(seen.baseline) else ""
    return words


@dataclass(frozen=True)
class TrialRow:
    """One run of a trial.

    Args:
        name: What was changed; "as it is" for nothing.
        start: Median loss of the first pass, for people.
        end: Median loss of the last one.
        over_baseline: End over the loss of the best constant prediction.
        outcome: What came of it, in words.
        fixes: Whether it fixes what was wrong with the run as it is.
    """

    name: str
    start: str
    end: str
    over_baseline: str
    outcome: str
    fixes: bool


def trial_rows(trace: Trace) -> list[TrialRow]:
    """Return a row for the run as it is and one for each variation; none where nothing was tried."""
    trial = trace.probes.trial
    if trial is None or not trial.steps:
        return []
    seen = verdict(trace)
    ended = seen.state == BROKEN and trial.broken is not None
    as_it_is = TrialRow(
        "as it is",
        number(_known(seen.start)),
        "–" if ended else number(_known(seen.end)),
        "–" if ended else number(_known(seen.end_over_baseline)),
        f"breaks at step {trial.broken}" if ended else seen.state,
        False,
    )
    return [as_it_is, *(_row(name, one, seen, trial.outputs) for name, one in trial.variations.items())]


def _row(name: str, result: VariationResult, seen: Any, outputs: tuple[OutputTrial, ...]) -> TrialRow:
    if result.outputs_learned is not None and result.start is None:
        before, count = sum(one.learned for one in outputs), len(outputs)
        words = f"{result.outputs_learned} of {count} outputs {'learns' if result.outputs_learned == 1 else 'learn'}"
        fixed = result.outputs_learned > before
        return TrialRow(variation_of(name).label, "–", "–", "–", words, fixed)
    if result.end is None:
        where = "" if result.broken is None else f" at step {result.broken}"
        return TrialRow(variation_of(name).label, "–", "–", "–", f"breaks{where}", False)
    fixed = fixes(result, seen)
    return TrialRow(
        variation_of(name).label,
        number(result.start),
        number(result.end),
        number(result.over_baseline),
        "fixes it" if fixed else "does not fix it",
        fixed,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
