"""What rules ask of the probes of data, structure and loss: arrays, outputs beside their targets, who broke first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.readings import number
from gradrecipes.diagnosis.verdict import LEARNING, OSCILLATING, STALLED, Verdict, verdict

Array = dict[str, Any]

REACHES_CHANCE = 10.0  # trials of further training; a loss that needs more to get to chance at its pace is held back
AT_CHANCE = (0.9, 1.1)  # end over chance of a net that answers everything with the same: 1 but for the batches
FAR_START = 3.0  # start over chance of a net whose first answers are far out; nets at the usual scale start below 2


@dataclass(frozen=True)
class Head:
    """One output of a net, with the loss on it, the targets it is compared with, and what it puts out at first.

    Args:
        output: What the structure probe says of it.
        target: What the data probe says of its targets; None where they are not known or no numbers.
        measured: What the loss probe read; empty where it could not be run.
        points: Where the loss probe evaluated its loss.
        place: Among the flattened outputs.
    """

    output: dict[str, Any]
    target: Array | None
    measured: dict[str, Any]
    points: tuple[dict[str, Any], ...]
    place: int

    @property
    def activation(self) -> str:
        """The last activation; `"unknown"` where an operation behind it is not understood."""
        return str(self.output.get("activation") or "unknown") if self.output.get("certain") else "unknown"

    @property
    def loss(self) -> str:
        """Keras' name of the loss, or that of the user's function."""
        return str(self.output.get("loss") or "")

    @property
    def of_keras(self) -> bool:
        """Whether the loss is one of Keras' own, so that what it does to its arguments is known."""
        return bool(self.output.get("loss")) and not self.output.get("custom")

    @property
    def shape(self) -> list[int] | None:
        """Shape of the output without samples, as measured or as built; None where an axis is not known."""
        shape = self.measured.get("shape") or self.output.get("shape")
        return None if shape is None or any(size is None for size in shape) else [int(size) for size in shape]

    @property
    def units(self) -> int | None:
        """Entries of the last axis."""
        return (self.shape[-1] if self.shape else None) or self.output.get("units")


def heads(trace: Trace) -> list[Head]:
    """Return the outputs that have a loss."""
    outputs = (trace.probes.get("structure") or {}).get("outputs") or []
    arrays = (trace.probes.get("data") or {}).get("targets") or []
    loss = trace.probes.get("loss") or {}
    measured, points = loss.get("outputs") or [], loss.get("points") or []
    by_name = {array.get("name"): array for array in arrays}
    found = []
    for place, output in enumerate(outputs):
        if output.get("loss") is None:
            continue
        index = output.get("target")
        by_place = arrays[index] if isinstance(index, int) and index < len(arrays) else None
        target = by_name.get(f"y[{output.get('name')!r}]", by_place)
        found.append(
            Head(
                output,
                target if target and target.get("numeric") else None,
                measured[place] if place < len(measured) else {},
                tuple(point for point in points if point.get("output") == place),
                place,
            )
        )
    return found


def arrays(trace: Trace, *, which: str = "data", parts: tuple[str, ...] = ("inputs", "targets")) -> list[Array]:
    """Return what the data probe read of inputs, targets or sample weights, those that are numbers."""
    data = trace.probes.get(which) or {}
    return [array for part in parts for array in data.get(part) or [] if array.get("numeric")]


def names(trace: Trace) -> list[str]:
    """Return how inputs, targets and sample weights are called, those that are no numbers too."""
    data = trace.probes.get("data") or {}
    found = [array.get("name") for part in ("inputs", "targets", "sample_weight") for array in data.get(part) or []]
    return [name for name in found if name]


def offenders(trace: Trace) -> list[dict[str, Any]]:
    """Return what the autopsy of the trial, or of a recorded run, found to be broken, in order."""
    held = (trace.probes.get("trial") or {}).get("autopsy") or trace.probes.get("autopsy") or {}
    return list(held.get("offenders") or [])


def holds_back(trace: Trace, seen: Verdict | None = None) -> bool:
    """Say whether something is wrong with a run: it broke, ran away, stands still, or is on no way to chance.

    A run that learns, and at its own pace gets to chance within ten times as many steps, is let be, however far out
    it began.
    """
    seen = seen or verdict(trace)
    if seen.unhealthy or seen.state in (STALLED, OSCILLATING):
        return not _at_rest(seen)
    if seen.state != LEARNING:
        return False
    over = number(seen.end_over_chance)
    if over is None:
        return False
    if over < AT_CHANCE[1]:
        return over >= AT_CHANCE[0] and seen.start_over_chance >= FAR_START
    return _log_fall(seen) * REACHES_CHANCE < _log(over)


def _at_rest(seen: Verdict) -> bool:
    """Say whether a loss that stands still does so where there is nothing left to learn."""
    return (
        seen.state in (STALLED, OSCILLATING) and number(seen.end_over_chance) is not None and seen.end_over_chance < 0.5
    )


def _log_fall(seen: Verdict) -> float:
    return max(0.0, _log(seen.start / seen.end)) if seen.start > 0 and seen.end > 0 else 0.0


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
