"""What is known of a run, in the order in which people ask for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from gradrecipes.core.trace import OUTCOMES, Trace
from gradrecipes.core.trace.event import Event
from gradrecipes.report.wording import number

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
    text = f"{steps:,} steps in {epochs} epoch{'' if epochs == 1 else 's'}, {len(trace.layers)} layers, "
    text += f"{len(trace.samples):,} samples"
    if skipped:
        reasons = ", ".join(f"{count} {OUTCOMES.get(code, 'unknown outcome')}" for code, count in skipped.items())
        text += f"; {sum(skipped.values())} steps skipped ({reasons})"
    return text
