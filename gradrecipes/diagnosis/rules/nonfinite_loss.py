"""nonfinite_loss: the loss becomes NaN or infinite, and which value was not finite first.

## What it does
Names the first step whose loss is NaN or infinite, with its epoch and batch, and follows the chain back: was there a
non-finite gradient in an earlier step, were there non-finite weights, was a layer's output not finite in that step, or
was everything finite before, so that the batch itself is suspect? It is only a warning where a guard skipped every such
step and the weights did not change.

## Why it is bad
NaN spreads: one NaN entry in a gradient makes the updated weights NaN, and with them every later output. Keras
continues without an error, and saves the NaN weights in every later checkpoint.

## Example
```python
model.fit(x, y)  # loss: 2.31, 2.05, nan, nan, nan ...
```

## Remedy
This is a symptom: treat the cause if one is named. One batch alone points to the data; look at it, and check inputs and
targets with `numpy.isfinite`. Train with a guard that skips such steps and stops with a reason.

## References
- Keras: `keras.callbacks.TerminateOnNaN`, which stops but neither explains nor keeps the weights.
- Chowdhery et al. (PaLM), arXiv 2204.02311: skipping the batches of a spike and going on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.diagnosis.facts.readings import nonfinite_gradients, nonfinite_losses, place, rounded
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

MAX_ISOLATED_BATCHES = 3  # non-finite batches, or as many as there were epochs, that still count as isolated
DIVERGED_RISE = 10.0  # last finite loss over the first: the run diverged before it broke


class First(NamedTuple):
    """Say what broke first: a word for it, the step, and the layer where that is known."""

    what: str
    step: int
    layer: str | None = None


@rule(
    code="nonfinite_loss",
    kind=Kind.SYMPTOM,
    title="The loss becomes NaN or infinite",
    order=240,
)
def nonfinite_loss(trace: Trace) -> Finding | None:
    """Tell when the loss first became NaN or infinite, and what broke first."""
    bad = nonfinite_losses(trace)
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    step, first = int(trace.steps["step"][row]), _first(trace, row)
    held, isolated = bool(trace.skipped[bad].all()), _isolated(trace, bad)
    where = place(trace, step)
    return Finding(
        code="nonfinite_loss",
        title=f"The loss is {_name(trace, row)} at {where}" + (", and the guard kept the weights" if held else ""),
        kind=Kind.SYMPTOM,
        severity=Severity.WARNING if held else Severity.CRITICAL,
        confidence=1.0,
        explanation=" ".join(
            (_history(trace, row, where), _origin(trace, first, step), _aftermath(trace, bad, held, isolated))
        ),
        layer=first.layer,
        step=step,
        evidence=(
            Evidence(
                f"{int(bad.sum())} of {len(bad)} steps have a loss that is NaN or infinite, the first at {where}.",
                float(bad.sum()),
                0.0,
                "this run",
            ),
            Evidence(
                f"The first reading that was not finite: {first.what}, at {place(trace, first.step)}.",
                source="the order of readings within a step: outputs, loss, gradient, update, weights",
            ),
        ),
        prescriptions=_prescriptions(trace, row, held or isolated or not _climbing(trace, step)),
    )


def _first(trace: Trace, row: int) -> First:
    """Return the first reading that broke, up to and including the step of the loss."""
    step = int(trace.steps["step"][row])
    candidates = [First("the loss", step)]
    applied = ~trace.skipped  # what a skipped step broke went nowhere
    rows = np.flatnonzero(nonfinite_gradients(trace)[:row] & applied[:row])
    if len(rows):
        candidates.insert(0, First("a gradient", int(trace.steps["step"][rows[0]])))
    order = np.argsort(trace.samples["step"], kind="stable")
    samples = order[trace.samples["step"][order] <= step]
    for reading, what in (("weight_norm", "the weights"), ("output_rms", "an output")):
        values = trace.samples[reading]
        measured = np.isfinite(values).any(axis=0)  # a column that never held a number was not measured
        if trace.probes.trial:  # outputs were captured before the first step only
            measured = measured & np.isfinite(values).any(axis=1, keepdims=True)
        broken = np.isinf(values) | (np.isnan(values) & measured)
        hits = [(int(trace.samples["step"][i]), np.flatnonzero(broken[i])) for i in samples if broken[i].any()]
        if hits:
            candidates.append(First(what, hits[0][0], trace.layers[int(hits[0][1][0])]))
    # Within one step: weights (read before the update) break the outputs, outputs the loss, the loss the gradient.
    rank = {"the weights": 0, "an output": 1, "the loss": 2, "a gradient": 3}
    return min(candidates, key=lambda first: (first.step, rank[first.what]))


def _isolated(trace: Trace, bad: np.ndarray) -> bool:
    """Say whether the bad steps stand alone: few, each followed by finite ones, at most one an epoch if more."""
    epochs = trace.steps["epoch"][bad]
    few = bad.sum() <= MAX_ISOLATED_BATCHES or len(set(epochs.tolist())) == len(epochs)
    return bool(few and not bad[-1] and not (bad[1:] & bad[:-1]).any())


def _name(trace: Trace, row: int) -> str:
    loss = float(trace.loss[row])
    return "NaN" if math.isnan(loss) else "infinite"


def _history(trace: Trace, row: int, where: str) -> str:
    if row == 0:
        return f"The very first loss, at {where}, is {_name(trace, row)}: the run never had a finite loss."
    finite = trace.loss[:row][np.isfinite(trace.loss[:row])]
    last = (
        (f"; the last finite loss was {rounded(float(finite[-1]))}, the first {rounded(float(finite[0]))}")
        if len(finite)
        else ""
    )
    climbing = _climbing(trace, int(trace.steps["step"][row]))
    trend = " It was rising before that, so the cause lies in earlier steps." if climbing else ""
    return f"The loss becomes {_name(trace, row)} at {where}{last}.{trend}"


def _climbing(trace: Trace, step: int) -> bool:
    finite = trace.loss[(trace.steps["step"] < step) & np.isfinite(trace.loss)]
    return len(finite) > 0 and bool(finite[-1] > DIVERGED_RISE * abs(finite[0]))


def _first_measured_layer(trace: Trace) -> str | None:
    measured = np.flatnonzero(np.isfinite(trace.samples["output_rms"]).any(axis=0))
    return trace.layers[int(measured[0])] if len(measured) else None


def _origin(trace: Trace, first: First, step: int) -> str:
    where = place(trace, first.step)
    layer = f" of {first.layer!r}" if first.layer else ""
    if first.what == "a gradient":
        return (
            f"A gradient was not finite first, at {where}: its update made the weights NaN, and then the loss. "
            "Look for what made that gradient so large."
        )
    if first.what == "the weights" and _climbing(trace, step):
        norms = trace.gradient_norm[(trace.steps["step"] < first.step) & np.isfinite(trace.gradient_norm)]
        size = f" (its gradient norm was {rounded(float(norms[-1]))})" if len(norms) else ""
        return (
            f"The weights{layer} were already not finite when that step began, at {where}: the update before "
            f"it{size} overflowed. Look for what made the updates grow."
        )
    if first.what == "the weights":
        return (
            f"The weights{layer} were not finite before that, at {where}, although all recorded gradients were: an "
            "optimizer's state that overflowed does this (a finite gradient beyond 1.8e19 makes Adam's second "
            "moment infinite), or an update between two samples."
        )
    finite = _data_are_finite(trace)
    first_layer = first.layer == _first_measured_layer(trace) and not _climbing(trace, step)
    if first.what == "an output" and first_layer and not finite:
        return (
            f"The output{layer}, the first layer, was not finite at {where}, although its weights were finite and "
            "the loss was not rising: the inputs of this batch contain NaN or infinite values."
        )
    if first.what == "an output":
        data = "" if finite else ", or the batch contains NaN or infinite values"
        return (
            f"The output{layer} was the first that was not finite, at {where}, while the weights still were: the "
            f"signal overflowed on its way through the net{data}."
        )
    batch = "" if finite else "NaN or infinite values in this batch, or "
    return (
        "Weights, gradients and outputs that were recorded before it are finite, so the cause is in the step "
        f"itself: {batch}a layer or a loss that takes the logarithm of 0, divides by 0, or overflows."
    )


def _aftermath(trace: Trace, bad: np.ndarray, held: bool, isolated: bool) -> str:
    epochs = len(set(trace.steps["epoch"][bad].tolist()))
    if held and isolated:
        again = (
            f"It recurred once in each of {epochs} epochs, as one bad sample does that is shuffled to another batch."
            if bad.sum() > 1 and epochs == bad.sum()
            else "Every other batch was finite."
        )
        return f"The guard skipped the step and kept the weights as they were. {again} That points to the data."
    if held:
        return (
            f"The guard skipped all {int(bad.sum())} such steps and kept the weights as they were. So many are no "
            "accident: skipping hides the cause and does not fix it."
        )
    if isolated:
        return "The loss was finite again in later steps, so the weights are intact; look at this batch."
    return f"{int(bad.sum())} of {len(bad)} steps are lost, and weights saved since then are worthless."


def _prescriptions(trace: Trace, row: int, data_suspect: bool) -> tuple[Prescription, ...]:
    if _data_are_finite(trace):
        return (prescription("guard"),)
    inspect = _inspect(trace, row)
    return (inspect, prescription("guard")) if data_suspect else (prescription("guard"), inspect)


def _data_are_finite(trace: Trace) -> bool:
    """Return whether all the data were read, and every number in them is finite."""
    data = trace.probes.data or DataReading()
    arrays = data.arrays("inputs", "targets")
    return data.complete and bool(data.inputs) and not any(one.nonfinite for one in arrays)


def _inspect(trace: Trace, row: int) -> Prescription:
    size = trace.description.batch_size
    size = size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else 32
    start = int(trace.steps["batch"][row]) * size
    return prescription("inspect_batch", start=start, end=start + size)
