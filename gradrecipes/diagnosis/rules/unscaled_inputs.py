"""unscaled_inputs: the inputs of the first weights are far from unit size, and the training suffers from it.

## What it does
Looks at inputs that are not followed by a normalization: their root mean square, the range of their columns' scales,
and the distance of their means from 0. It fires only where the run suffers (is not finite, diverges, stalls, or does
not beat a constant prediction), or where they drive the bounded units of the first layer of a train step without
targets, such as that of an equation, to their ends. It is certain where the net learns in the same steps with scaled
inputs. Pixels from 0 to 255 from which a net learns anyway are not reported, nor are indices into an embedding;
numbers with a fraction are, where an embedding is all that they meet.

## Why it is bad
Initializers keep the size of a signal; they do not set it. Inputs of size 250 make outputs, loss and every gradient of
the first layer that many times larger, so a learning rate that suits all other layers is 250 times too high there.
Columns of sizes 0.001 and 4000 make a valley four million times as long as it is wide: no single rate suits both.

## Example
```python
pixels = 255 * x  # as they come from a file
model.fit(pixels, y)
```

## Remedy
A Normalization layer that is adapted to the training data, or Rescaling for pixels.

## References
- LeCun, Bottou, Orr, Mueller, "Efficient BackProp", section 4.3; Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import Columns, DataReading, Setting
from gradrecipes.core.trace.description import InputDescription
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.core.trace.trial_reading import ALL_SCALED, SCALED_INPUTS
from gradrecipes.diagnosis.facts.data_facts import (
    FAR_START,
    ArrayReading,
    first_loss_over_baseline,
    held_back_by,
    improves,
)
from gradrecipes.diagnosis.facts.divergences import at_fault
from gradrecipes.diagnosis.facts.readings import MIN_INPUT_RMS, WEIGHTED, behind_scaling, layers, number, rounded
from gradrecipes.diagnosis.outcome import Verdict, fixed_by, halved_by, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

MAX_INPUT_RMS = 10.0  # root mean square of what enters the first weights; standardized data have 1, bytes of pixels 100
MAX_INPUT_RMS_IF_FIXED = 3.0  # the same, where scaling fixes the run; also the size of a column that is judged alone
MAX_COLUMN_RATIO = 100.0  # largest over smallest deviation of a column, one of the columns being larger than 3
OFF_CENTER = 10.0  # mean of a column over its deviation, where that mean is larger than 3
FAR_OUT = 5.0  # loss at the start over that of a constant prediction, where columns of different scales still learn
FAR_FROM_BASELINE = 2.0  # loss at the end of the trial over that of a constant prediction, where scaling fixes it
SHUT_SHARE = 0.9  # share of the outputs of the first layer within a tenth of the slope of their ends
SHOWN_COLUMN_RATIO = 3.0  # size of the largest column over the median one, from which it is shown as evidence
SHOWN_START = 3.0  # loss at the start over that of a constant prediction, from which it is shown as evidence


@rule(
    code="unscaled_inputs",
    kind=Kind.CAUSE,
    title="The inputs are far from unit size",
    short="inputs far from unit size",
    order=80,
    brings_about=(
        "loss_without_gradient",
        "frozen_weights",
        "dead_units",
        "saturated_units",
        "attention_logit_growth",
        *LONG_STEPS,
        *FAILED_RUN,
    ),
)
def unscaled_inputs(trace: Trace) -> Finding | None:
    """Tell which inputs are far from unit size, and what becomes of the run with and without scaling."""
    seen = verdict(trace)
    if (fractions := _fractions(trace)) is not None:
        return fractions
    shut = _shut_out(trace)
    blamed = at_fault(trace, Setting.INPUTS) is not None
    held = blamed or shut is not None or held_back_by(trace, SCALED_INPUTS, seen)
    if not held and not _slowed(trace, seen):
        return None
    healed, tried = blamed or fixed_by(trace, SCALED_INPUTS), variation(trace, SCALED_INPUTS) is not None
    better = improves(trace, SCALED_INPUTS, seen) and first_loss_over_baseline(trace, seen) >= FAR_START
    together = fixed_by(trace, ALL_SCALED)
    far = [(array, odd) for array in _unscaled(trace) if (odd := _oddity(array, fixed=healed)) is not None]
    if not far or (tried and not (healed or better or together)):
        return None
    array, (what, measured, expected) = max(far, key=lambda pair: abs(math.log(max(pair[1][1], 1e-30))))
    if (scaling := _scaling(trace, array)) is not None:
        what = what.replace(array.name, f"{array.name}, behind its {scaling},", 1)
    sure = 0.95 if healed and _oddity(array, fixed=False) else 0.85 if better else 0.7
    return Finding(
        code="unscaled_inputs",
        title=f"The inputs are not scaled: {what}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if held else Severity.WARNING,
        confidence=sure,
        explanation=_explanation(array, what, scaling),
        step=seen.step,
        evidence=(
            Evidence(f"{what}.", measured, expected, "the data; Efficient BackProp, section 4.3"),
            *_largest_columns(array),
            *_start(seen),
            *(() if shut is None else (_at_their_ends(shut),)),
            *variation_evidence(trace, SCALED_INPUTS, *(() if healed else (ALL_SCALED,))),
        ),
        prescriptions=_scaled(array) if scaling is None else (prescription("fit_scaling", name=array.name),),
    )


def _fractions(trace: Trace) -> Finding | None:
    """Tell that numbers with a fraction are looked up in a table, which casts them to whole ones."""
    met = trace.description.inputs
    arrays = zip((trace.probes.data or DataReading()).inputs, met, strict=False)
    array = next((one for one, about in arrays if about.name and about.looked_up and one.numeric and one.std), None)
    if array is None or array.integer_valued or verdict(trace).unhealthy:
        return None
    statement = (
        f"{array.name} is only looked up in an Embedding, and its numbers, between {rounded(array.min)} and "
        f"{rounded(array.max)}, are not whole"
    )
    return Finding(
        code="unscaled_inputs",
        title=f"{array.name} holds fractions, and an Embedding takes only what stands before the point",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=(
            f"{statement}. An Embedding casts what it is given to whole numbers: codes that were scaled fall together, "
            "and the net cannot tell them apart."
        ),
        evidence=(Evidence(f"{statement}.", array.max, None, "the data"),),
        prescriptions=(prescription("whole_codes", name=array.name),),
    )


def far_inputs(trace: Trace) -> list[ArrayReading]:
    """Return the inputs whose scale is odd enough to be fixed where a trial shows that scaling helps."""
    return [array for array in _unscaled(trace) if _oddity(array, fixed=True) is not None]


def _shut_out(trace: Trace) -> LayerSignal | None:
    """Return the first layer of an own loss without targets whose bounded units its inputs drive to their ends.

    Such a step has no constant prediction to beat, and its loss falls by what the later layers make of almost constant
    units: that of an equation has solutions that are flat nearly everywhere.
    """
    own = trace.description.own_train_step or trace.description.own_loss
    if not own or any(target.std for target in (trace.probes.data or DataReading()).targets):
        return None  # targets that are all equal are none
    first = next((layer for layer in layers(trace) if layer.activation or layer.kind in WEIGHTED), None)
    far = (
        first is not None and (first.input_rms or 0.0) > MAX_INPUT_RMS and (first.saturated_share or 0.0) >= SHUT_SHARE
    )
    return first if far else None


def _slowed(trace: Trace, seen: Verdict) -> bool:
    """Say whether a run that falls is far behind the same steps on scaled inputs, or behind a constant prediction."""
    if seen.end_over_baseline > FAR_FROM_BASELINE and fixed_by(trace, SCALED_INPUTS):
        return True
    apart = [array for array in _unscaled(trace) if _apart(array.columns)]
    return bool(apart) and seen.start_over_baseline >= FAR_OUT and halved_by(trace, seen, SCALED_INPUTS)


def _apart(columns: Columns | None) -> bool:
    """Say whether some columns are of another order than the typical one; pixels, dark or bright, are not."""
    if columns is None:
        return False
    typical, largest = columns.rms_median, columns.rms_max
    return bool(typical and largest and largest > MAX_COLUMN_RATIO * typical and largest > MAX_INPUT_RMS_IF_FIXED)


def _unscaled(trace: Trace) -> list[ArrayReading]:
    """Return the inputs that are numbers and that no normalization stands behind."""
    arrays = (trace.probes.data or DataReading()).inputs
    met = trace.description.inputs
    by_name = {f"x[{one.name!r}]": one for one in met}
    found = []
    for place, array in enumerate(arrays):
        one = by_name.get(array.name, met[place] if place < len(met) else InputDescription())
        scaled = one.normalized is not None or one.first_kind == "Embedding"
        rms = behind_scaling(trace.description, trace.probes.signal)
        if rms is not None and len(arrays) == 1 and not MIN_INPUT_RMS <= rms <= MAX_INPUT_RMS:
            array, scaled = replace(array, rms=rms, columns=Columns(0), outliers=(), rms_without_outliers=rms), False
        if array.numeric and not array.feeds_embedding and not scaled and array.columns:
            found.append(array)
    return found


def _scaling(trace: Trace, array: ArrayReading) -> str | None:
    """Return the layer of fixed factors whose result was judged in the place of an array, or None."""
    met = trace.description.inputs
    behind = bool(met) and array.columns == Columns(0) and not array.outliers
    return (met[0].normalized or "Rescaling") if behind else None


def _oddity(array: ArrayReading, *, fixed: bool) -> tuple[str, float, float] | None:
    """Return what is odd about the scale of an array (words, measured, expected), or None."""
    columns = Columns(0) if array.outliers or array.columns is None else array.columns  # outliers set all scales
    name, rms = array.name, array.rms_without_outliers
    low, high = columns.std_min, columns.std_max
    mean = columns.mean_abs_max or 0.0
    if rms is None:
        return f"{name} overflows when it is squared", math.inf, 1.0
    if rms > (MAX_INPUT_RMS_IF_FIXED if fixed else MAX_INPUT_RMS):
        apart = (
            (f", and its columns have standard deviations from {rounded(low)} to {rounded(high)}")
            if low and high and high > MAX_COLUMN_RATIO * low
            else ""
        )
        return f"{name} has a root mean square of {rounded(rms)}{apart}", rms, 1.0
    if low and high and high > MAX_COLUMN_RATIO * low and high > MAX_INPUT_RMS_IF_FIXED:
        return f"the columns of {name} have standard deviations from {rounded(low)} to {rounded(high)}", high / low, 1.0
    if high and mean > MAX_INPUT_RMS_IF_FIXED and mean > OFF_CENTER * high:
        return (
            f"the columns of {name} have means up to {rounded(mean)} and standard deviations of at most "
            f"{rounded(high)}",
            mean / high,
            0.0,
        )
    if 0 < rms < MIN_INPUT_RMS and fixed:
        size = "has a root mean square of" if columns.count else "differs from sample to sample by"
        return f"{name} {size} only {rounded(rms)}", rms, 1.0
    return None


def is_pixels(array: ArrayReading) -> bool:
    """Return whether an array holds whole numbers from 0 to 255."""
    low, high = number(array.min), number(array.max)
    whole = bool(array.integer_valued)
    return whole and low is not None and low >= 0 and high is not None and 200 <= high <= 255


def _explanation(array: ArrayReading, what: str, scaling: str | None) -> str:
    rms = number(array.rms)
    small = rms is not None and rms < MIN_INPUT_RMS
    size = (
        "The first layer hardly responds to them: its outputs and gradients are that many times too small, and "
        "all samples look alike."
        if small
        else "The output of the first layer, the loss, and the gradient of its weights grow with the inputs, so a "
        "learning rate that suits the rest of the net is that many times too high there; columns of different "
        "scales need different rates."
    )
    precedes = "No normalization" if scaling is None else f"A {scaling} that does not fit the data"
    return (
        f"{precedes} precedes the first weights, and {what}. Initializers and learning rates assume inputs "
        f"of mean 0 and standard deviation 1. {size}"
    )


def _largest_columns(array: ArrayReading) -> tuple[Evidence, ...]:
    columns = array.columns or Columns(0)
    if columns.count < 2 or not columns.largest or not columns.rms_median:
        return ()
    first = columns.largest[0]
    size = math.hypot(first.mean or 0.0, first.std or 0.0)
    if size < SHOWN_COLUMN_RATIO * columns.rms_median:
        return ()
    return (
        Evidence(
            f"Column {first.column} is the largest, {rounded(size)} in root mean square; the median column has "
            f"{rounded(columns.rms_median)}.",
            size,
            columns.rms_median,
            "the data",
        ),
    )


def _start(seen: Any) -> tuple[Evidence, ...]:
    if not seen.start_over_baseline >= SHOWN_START:
        return ()
    statement = (
        f"The run began at a loss of {rounded(seen.start)}; a constant prediction would give {rounded(seen.baseline)}."
    )
    return (Evidence(statement, seen.start, seen.baseline, "this trial, and the targets alone"),)


def _at_their_ends(layer: LayerSignal) -> Evidence:
    share = layer.saturated_share or 0.0
    statement = f"{rounded(100 * share)}% of what {layer.name!r} puts out lies at the ends of its {layer.activation}."
    return Evidence(statement, share, 0.0, "one batch, before the trial")


def _scaled(array: ArrayReading) -> tuple[Prescription, ...]:
    """Return the advice to bring inputs to unit size, inside the model and outside of it."""
    inside = "rescale_pixels" if is_pixels(array) else "normalization_layer"
    return prescription(inside, name=array.name), prescription("standardize_inputs", name=array.name)
