"""saturated_units: hidden sigmoid or tanh units are at their bounds, where their derivative is close to zero.

## What it does
Counts, on one real batch, the outputs of bounded activations close to a bound (|tanh| above .95, where the derivative
is below a tenth). It fires where more than half of a hidden layer is saturated before the training, or after the trial,
and the loss did not fall as it should.

## Why it is bad
The gradient is multiplied by the derivative. A unit at its bound passes on hardly any gradient, for any sample, so
neither its own weights nor earlier ones can learn; and the cause, a large weight or a large input, remains.

## Example
```python
keras.layers.Dense(64, activation="tanh", kernel_initializer=keras.initializers.RandomNormal(stddev=1.0))
```

## Remedy
Scale the inputs; weights from Glorot's initializer; a normalization before the activation; or a ReLU.

## References
- Glorot and Bengio, AISTATS 2010, section 3: saturation of sigmoids in deep nets.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.data_facts import LEARNED_END
from gradrecipes.diagnosis.facts.readings import hidden, rounded, weights
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.diagnosis.prescriptions import (
    change_activation,
    normalize_before_the_activation,
    use_fitting_initializer,
)
from gradrecipes.diagnosis.registry import rule

MIN_SATURATED_SHARE = 0.5  # share of a layer's outputs at a bound; Glorot weights and scaled inputs give below .05


@rule(
    code="saturated_units",
    kind=Kind.CAUSE,
    title="Bounded units are stuck at their bounds",
    short="saturated units",
    order=180,
    brings_about=("loss_without_gradient", "learning_rate_too_low", "stalled_loss", "vanishing_gradient"),
)
def saturated_units(trace: Trace) -> Finding | None:
    """Tell whether hidden units sit at the bounds of their activation."""
    seen = verdict(trace)
    if seen.learned and not seen.end_over_baseline > LEARNED_END:
        return None
    for when in ("before",) if seen.learned else ("before", "after"):
        bad = [layer for layer in hidden(trace, when) if (layer.saturated_share or 0.0) > MIN_SATURATED_SHARE]
        if bad:
            break
    else:
        return None
    worst = max(bad, key=lambda layer: layer.saturated_share or 0.0)
    share, name = worst.saturated_share or 0.0, worst.activation
    moment = "before the first step" if when == "before" else "at the end of the trial, but not at its beginning"
    statement = f"{rounded(100 * share)}% of the outputs of {worst.name!r} ({name}) are at a bound {moment}."
    own = [weight for weight in weights(trace) if weight.layer == worst.name]
    advice = [normalize_before_the_activation(trace), *change_activation(trace, str(name), "relu")]
    return Finding(
        code="saturated_units",
        title=f"{rounded(100 * share)}% of {worst.name!r} is saturated",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.75 if when == "before" else 0.6,
        explanation=(
            f"{statement} There the derivative of {name} is close to 0, and so is every gradient that passes "
            f"through it. The cause is the size of the inputs, {rounded(worst.input_rms or 0.0)} in root mean square, "
            "times the weights."
        ),
        layer=worst.name,
        step=None if when == "before" or not len(trace) else int(trace.steps["step"][-1]),
        evidence=(Evidence(statement, share, 0.05, "AISTATS 2010 (Glorot), section 3"),),
        prescriptions=(*([use_fitting_initializer(own, name)] if own and when == "before" else []), *advice),
    )
