"""frozen_random_numbers: noise, masks or time steps that are meant to be new at each step are those of the first one.

## What it does
Runs a step that holds code of the user's own eagerly, twice from the same weights and with the same random numbers of
TensorFlow and Keras. What differs then is made by Python, such as `np.random.normal(...)`. Keras runs Python once,
while it traces the step; the rule fires where the traced step gives the same loss twice, or draws none of these
numbers. It also fires where a step adds noise to the samples of a batch, or multiplies them by it, that `keras.random`
or `tf.random` draw with a constant seed.

## Why it is bad
The net is trained for one draw: a denoising net learns to take away one picture of noise, a diffusion net a few time
steps, a dropout written by hand leaves out the same units for good. The loss falls as if nothing were wrong.

## Example
```python
def train_step(self, data):
    noise = np.random.normal(size=(32, 64))  # one array, a constant of the graph
```

## Remedy
Draw with `keras.random` and a `keras.random.SeedGenerator`, or with `tf.random.normal`.

## References
- TensorFlow guide "Better performance with tf.function": Python side effects happen while tracing.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LossReading
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="frozen_random_numbers",
    kind=Kind.CAUSE,
    title="Random numbers are drawn once, and are the same at every step",
    short="random numbers drawn once",
    order=56,
    brings_about=("stalled_loss", "broken_validation"),
)
def frozen_random_numbers(trace: Trace) -> Finding | None:
    """Tell whether a step computes with the random numbers that it was traced with."""
    read = (trace.probes.loss or LossReading()).drawn_once
    if read is None:
        return None
    statement = f"The step draws from {read.source}, and every step computes with the same numbers"
    evidence = [Evidence(f"{statement}.", None, None, "the step run eagerly and as a graph, from the same weights")]
    if read.fixed is not None and read.redrawn:
        others = " and ".join(map(rounded, read.redrawn))
        beside = f"With these numbers the loss of a batch is {rounded(read.fixed)}; with new ones it is {others}."
        evidence.append(Evidence(beside, max(read.redrawn), read.fixed, "this trial, at its end"))
    return Finding(
        code="frozen_random_numbers",
        title="Random numbers are drawn once, and are the same at every step",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=0.95,
        explanation=(
            f"{statement}: what is learned holds for these alone. Keras runs the Python of a step once, while it makes "
            "the graph of it, and a constant seed gives the same numbers each time."
        ),
        evidence=tuple(evidence),
        prescriptions=(prescription("draw_anew"),),
    )
