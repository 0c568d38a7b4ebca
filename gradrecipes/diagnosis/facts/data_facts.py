"""What rules read from the probes of data and loss: arrays, outputs with their targets, and the first failure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy, LayerReading, Offender
from gradrecipes.core.trace.data_reading import CLASS_WEIGHT, ArrayReading, DataReading
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.core.trace.probes import LossPoint, LossReading, OutputReading
from gradrecipes.core.trace.trial_reading import TrialReading, Variation
from gradrecipes.diagnosis.facts.readings import number
from gradrecipes.diagnosis.outcome import (
    LEARNING,
    OSCILLATING,
    STALLED,
    Verdict,
    fixed_by,
    fixes,
    fixing_rate,
    losses,
    variation,
    verdict,
)

REACHES_BASELINE = 10.0  # trials; a loss that needs more of them to reach the baseline is held back
AT_BASELINE = (
    0.9,
    1.1,
)  # end over the baseline of a net whose prediction is constant
LEARNED_END = 0.5  # end over the baseline below which a net has learned, even if the loss no longer falls
BETTER_END = 0.98  # end of a variation over that of the run, on the same batches
FALLING_RATIO = 0.95  # last quarter over the one before, below which a loss still falls
THROWN_OFF = 10.0  # largest loss over the first; healthy nets stay below, with early spikes of Adam
FAR_START = 3.0  # start over the baseline from which a start is far out; nets of usual scale start below 2


@dataclass(frozen=True)
class Head:
    """One output of a net, with its loss, its targets and its values before training.

    Args:
        output: Its description.
        target: Its targets; None where they are not known or not numbers.
        measured: What it put out on one batch; an empty record where it could not be run.
        points: Where its loss was evaluated.
        place: Among the flattened outputs.
    """

    output: OutputDescription
    target: ArrayReading | None
    measured: OutputReading
    points: tuple[LossPoint, ...]
    place: int

    @property
    def activation(self) -> str:
        """The last activation; `"unknown"` where an operation after it is not recognized."""
        return str(self.output.activation or "unknown") if self.output.certain else "unknown"

    @property
    def name(self) -> str:
        """Name of the loss for the reader."""
        return str(self.output.loss or "")

    @property
    def loss(self) -> str:
        """Keras' name of the loss, or of the one that the user's function equals; else the function's name."""
        return self.name if self.measured.acts_like is None else self.measured.acts_like.loss

    @property
    def of_keras(self) -> bool:
        """Whether the loss is one of Keras' own, which stay finite at the ends of their range."""
        return bool(self.output.loss) and not self.output.custom

    @property
    def known(self) -> bool:
        """Whether the loss is one of Keras' own or equals one, so that its inputs are known."""
        return self.of_keras or bool(self.measured.acts_like)

    @property
    def from_logits(self) -> bool:
        """Whether the loss applies the activation itself."""
        like = self.measured.acts_like
        return bool(self.output.from_logits if like is None else like.from_logits)

    @property
    def shape(self) -> list[int] | None:
        """Shape of the output without samples, as measured or as built; None where an axis is not known."""
        shape = self.measured.shape or self.output.shape
        sizes = [] if shape is None else [size for size in shape if size is not None]
        return None if shape is None or len(sizes) < len(shape) else sizes

    @property
    def units(self) -> int | None:
        """Entries of the last axis."""
        return (self.shape[-1] if self.shape else None) or self.output.units


def heads(trace: Trace) -> list[Head]:
    """Return the outputs that have a loss."""
    outputs = trace.description.outputs
    arrays = (trace.probes.data or DataReading()).targets
    loss = trace.probes.loss or LossReading()
    measured, points = loss.outputs, loss.points
    by_name = {array.name: array for array in arrays}
    found = []
    for place, output in enumerate(outputs):
        if output.loss is None:
            continue
        index = output.target
        by_place = arrays[index] if index is not None and index < len(arrays) else None
        target = by_name.get(f"y[{output.name!r}]", by_place)
        found.append(
            Head(
                output,
                target if target and target.numeric else None,
                measured[place] if place < len(measured) else OutputReading(),
                tuple(point for point in points if point.output == place),
                place,
            )
        )
    return found


def arrays(trace: Trace, *, which: str = "data", parts: tuple[str, ...] = ("inputs", "targets")) -> list[ArrayReading]:
    """Return the inputs, targets or sample weights that are numbers."""
    data = trace.probes.data if which == "data" else trace.probes.validation
    return list((data or DataReading()).arrays(*parts))


def names(trace: Trace) -> list[str]:
    """Return the names of inputs, targets and sample weights, including arrays that are not numeric."""
    data = trace.probes.data or DataReading()
    given = (*data.inputs, *data.targets, *data.sample_weight)
    return [array.name for array in given if array.name and array.name != CLASS_WEIGHT]


def autopsy(trace: Trace) -> Autopsy:
    """Return the autopsy of the trial, or of a recorded run; an empty one where there is none."""
    return (trace.probes.trial or TrialReading()).autopsy or trace.probes.autopsy or Autopsy()


def offenders(trace: Trace) -> list[Offender]:
    """Return what the autopsy of the trial, or of a recorded run, found broken, in order."""
    return list(autopsy(trace).offenders)


def is_held_back(trace: Trace, seen: Verdict | None = None) -> bool:
    """Return whether something is wrong with a run: it broke, diverged, stalls, or does not approach the baseline.

    A run that learns and would reach the baseline within ten times as many steps is not held back, however far out it
    started; nor is one whose loss no longer falls far below the baseline.
    """
    seen = seen or verdict(trace)
    over = number(seen.end_over_baseline)
    if seen.unhealthy:
        return True
    if seen.state in (STALLED, OSCILLATING):
        return over is None or over > LEARNED_END
    if seen.state != LEARNING or over is None:
        return False
    if over < AT_BASELINE[1]:
        held = seen.start_over_baseline >= FAR_START and not _still_falling(trace)
        return over > AT_BASELINE[0] and (held or seen.slow)
    return _log_ratio(seen.start, seen.end) * REACHES_BASELINE < math.log(over)


def held_back_by(trace: Trace, tried: Variation, seen: Verdict) -> bool:
    """Return whether a run is held back, or learns no more than a constant prediction where one variation learns.

    The second concerns runs whose loss seems to fall: after a rise in the first steps it returns to the best constant
    prediction, and no other rate gets below that.
    """
    if is_held_back(trace, seen):
        return True
    over = number(seen.end_over_baseline)
    rates = fixing_rate(trace, lower=True), fixing_rate(trace, lower=False)
    if over is None or not fixed_by(trace, tried) or rates != (None, None):
        return False
    loss = losses(trace)
    thrown_off = over > AT_BASELINE[1] and float(np.nanmax(loss)) > THROWN_OFF * abs(float(loss[0]))
    return thrown_off or (AT_BASELINE[0] < over < AT_BASELINE[1] and not _still_falling(trace))


def improves(trace: Trace, tried: Variation, seen: Verdict) -> bool:
    """Return whether a variation does clearly better than a run that is held back, without fixing it yet."""
    result = variation(trace, tried)
    if result is None or result.end is None or result.fall is None or not result.fall > 0:
        return False
    over, before = result.over_baseline, number(seen.end_over_baseline)
    if over is None or before is None:
        return fixes(result, seen)
    return over < min(BETTER_END * before, 1.0)


def first_loss_over_baseline(trace: Trace, seen: Verdict) -> float:
    """Return the loss of the first batch over the baseline; NaN where that is not known."""
    loss = losses(trace)
    return float(loss[0]) / seen.baseline if len(loss) and seen.baseline > 0 else math.nan


def _still_falling(trace: Trace) -> bool:
    loss = losses(trace)
    quarter = max(1, len(loss) // 4)
    return bool(np.median(loss[-quarter:]) < FALLING_RATIO * np.median(loss[-2 * quarter : -quarter]))


def _log_ratio(start: float, end: float) -> float:
    return max(0.0, math.log(start / end)) if start > 0 and end > 0 else 0.0


def autopsy_readings(trace: Trace) -> list[LayerReading]:
    """Return the reading of each layer in the step that broke, from the autopsy."""
    return list(autopsy(trace).layers)


def largest_output(trace: Trace) -> float | None:
    """Return the largest finite output of the layer that ran last, in the step that broke."""
    sizes = [number(one.output_max) for one in autopsy_readings(trace)]
    return next((size for size in reversed(sizes) if size is not None), None)
