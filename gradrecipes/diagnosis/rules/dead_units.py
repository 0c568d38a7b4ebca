"""dead_units: ReLU units that are zero for every sample, and so cannot learn any more.

## What it does
Counts, on one real batch, the units of each hidden ReLU layer that are 0 for every sample. It fires where nine tenths
of a layer are dead before the training, or after the trial, and the loss did not fall as it should.

## Why it is bad
The derivative of a ReLU below zero is 0: a unit that is below zero for all samples gets no gradient, and no later batch
revives it. When a whole layer is dead, no earlier layer learns either, and the loss stays that of a constant
prediction.

## Example
```python
keras.layers.Dense(64, activation="relu", bias_initializer=keras.initializers.Constant(-10.0))
```

## Remedy
Biases that start at 0; a lower learning rate, if a single step pushed the units below zero; or an activation with a
derivative on both sides (leaky ReLU, ELU, GELU).

## References
- Lu et al., "Dying ReLU and initialization", arXiv 1903.06733.
- Maas et al., "Rectifier nonlinearities improve neural network acoustic models", 2013 (leaky ReLU).
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.readings import cut_off, hidden, layers, rounded, weights
from gradrecipes.diagnosis.outcome import confidence, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import change_activation, prescription, set_learning_rate
from gradrecipes.diagnosis.registry import rule

MIN_DEAD_SHARE = 0.9  # share of a layer's units; He weights leave a tenth dead on a batch, more than half is rare


@rule(
    code="dead_units",
    kind=Kind.CAUSE,
    title="ReLU units are zero for every sample",
    short="dead units",
    order=170,
    brings_about=("loss_without_gradient", "learning_rate_too_low", "stalled_loss", "vanishing_gradient"),
)
def dead_units(trace: Trace) -> Finding | None:
    """Tell whether ReLU units are 0 for every sample."""
    if verdict(trace).learned and not cut_off(trace):
        return None
    for when in ("before", "after"):
        bad = [layer for layer in hidden(trace, when) if (layer.dead_share or 0.0) >= MIN_DEAD_SHARE]
        bad += [layer for layer in layers(trace, when)[-1:] if layer.dead_share == 1.0 and layer not in bad]
        if bad:
            break
    else:
        return None
    worst = bad[0]  # those behind a dead layer may be dead for its sake
    share = worst.dead_share or 0.0
    biases = [w for w in weights(trace) if w.layer == worst.name and w.role == "bias" and w.mean < -0.5]
    moment = "before the first step" if when == "before" else "at the end of the trial, more than before it"
    statement = f"{rounded(100 * share)}% of the units of {worst.name!r} are 0 for every sample of a batch {moment}."
    if biases:
        statement += f" Its biases start at {rounded(biases[0].mean)}."
    zero = prescription("zero_biases", layer=worst.name)
    slower = set_learning_rate(
        trace, 0.1, "A step that moves a weight by its own size can push a unit below 0 permanently."
    )
    return Finding(
        code="dead_units",
        title=f"{rounded(100 * share)}% of the ReLU units of {worst.name!r} are dead",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=confidence(trace, FITTING_WEIGHTS) if when == "before" else 0.6,
        explanation=(
            f"{statement} Below zero the derivative of a ReLU is 0, so no gradient reaches their weights or, "
            "through them, earlier layers."
        ),
        layer=worst.name,
        step=None if when == "before" or not len(trace) else int(trace.steps["step"][-1]),
        evidence=(
            Evidence(statement, share, 0.1, "arXiv 1903.06733"),
            *(variation_evidence(trace, FITTING_WEIGHTS) if when == "before" else ()),
        ),
        prescriptions=(
            *([zero] if biases else []),
            *([slower] if when == "after" else []),
            *change_activation(trace, "relu", "leaky_relu"),
        ),
    )
