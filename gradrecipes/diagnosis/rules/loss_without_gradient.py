"""loss_without_gradient: the loss, or a term of it, does not depend on the weights as far as the gradient can tell.

## What it does
Fires where the slope of a user's own loss is exactly 0 at the predictions of every sample of a batch, and the loss of
the trial does not fall. Of a train step that returns the terms of its loss, it fires where a term has the same value on
the same batch in every pass, although the weights moved.

## Why it is bad
Gradient descent sees slopes only. A sign, a rounding, a threshold or an argmax is flat wherever it does not jump; a
clip is flat outside its range; the second derivative of a net of ReLUs is 0 wherever it exists. Such a term is not
learned, however large it is.

## Example
```python
import keras


def wrong(y, p):  # of labels -1 and 1: how many are on the wrong side
    return keras.ops.mean(keras.ops.sign(p) != y)
```

## Remedy
Put a smooth function in the place of the hard one: tanh or a sigmoid for a sign or a threshold, a softmax for an
argmax; activations with a second derivative, such as tanh or swish, for a loss of derivatives.

## References
- Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons", arXiv 1308.3432.
- Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", 2019: smooth activations.
"""

from __future__ import annotations

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.data_facts import heads
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import REGULARIZES, weights_of_parts
from gradrecipes.diagnosis.outcome import OSCILLATING, STALLED, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import prescription
from gradrecipes.diagnosis.registry import rule

SAME = 1e-6  # relative difference of a term from itself one pass later, up to which it did not change: float32 rounding


@rule(
    code="loss_without_gradient",
    kind=Kind.CAUSE,
    title="The loss, or a term of it, has no gradient",
    short="a loss without a gradient",
    order=54,
    explained_by=("nonfinite_data",),
)
def loss_without_gradient(trace: Trace) -> Finding | None:
    """Tell which loss, or which term of it, no weight can lower."""
    return _of_head(trace) or _of_term(trace)


def _of_head(trace: Trace) -> Finding | None:
    head = next((one for one in heads(trace) if one.measured.flat), None)
    if head is None or verdict(trace).state not in (STALLED, OSCILLATING):
        return None
    statement = f"The slope of the loss {head.name!r} is exactly 0 at the predictions of every sample of a batch"
    return _finding(f"The loss {head.name!r} has no gradient: its slope is 0 at every prediction", statement, trace)


def _of_term(trace: Trace) -> Finding | None:
    trial = trace.probes.trial or TrialReading()
    if not trace.description.own_train_step or not trial.batches or trial.steps < 2 * trial.batches:
        return None
    if not np.isfinite(trace.gradient_norm).all() or not np.any(trace.gradient_norm > 0):
        return None
    for name in weights_of_parts(trial):
        values = np.array(trial.logs[name], float)
        before, after = values[: -trial.batches], values[trial.batches :]
        if not REGULARIZES.search(name.lower()) and np.all(np.abs(after - before) <= SAME * np.abs(before)):
            statement = (
                f"The term {name!r} of the loss is {rounded(float(np.median(values)))}, and has the same value on the "
                f"same batch in every pass, although the weights move"
            )
            return _finding(f"The term {name!r} of the loss has no gradient: no step changes it", statement, trace)
    return None


def _finding(title: str, statement: str, trace: Trace) -> Finding:
    return Finding(
        code="loss_without_gradient",
        title=title,
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=(
            f"{statement}. A sign, a rounding, a threshold or an argmax is flat, and so is the second derivative of a "
            "net of ReLUs: gradient descent cannot lower what does not change with the weights."
        ),
        step=verdict(trace).step,
        evidence=(Evidence(f"{statement}.", 0.0, None, "this trial; expected: a slope"),),
        prescriptions=(prescription("smooth_loss"),),
    )
