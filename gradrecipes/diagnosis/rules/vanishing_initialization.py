"""vanishing_initialization: the initial weights make the signal, or the gradient, smaller in every layer.

## What it does
Looks at the weights and at the signal of one real batch before any update. It fires where most kernels are far smaller
than any usual initializer would draw them, or have all entries equal; or where the weights are usual but the activation
shrinks the gradient so much per layer (a sigmoid under Glorot's weights by a factor of four) that hardly any reaches
the first layers; and only where the trial stalled or failed.

## Why it is bad
A factor of a quarter per layer is a millionth after ten: the first layers receive no gradient and stay random, and the
last ones receive a constant. The loss then stays at that of a constant prediction. With weights that are all equal, all
units of a layer compute the same, and stay equal.

## Example
```python
[keras.layers.Dense(64, activation="sigmoid") for _ in range(12)]
keras.layers.Dense(64, activation="relu", kernel_initializer=keras.initializers.RandomNormal(stddev=1e-4))
```

## Remedy
The initializer that belongs to the activation, an activation of the ReLU family in hidden layers, or a normalization
before each activation.

## References
- Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
- Schoenholz et al., arXiv 1611.01232: the depth that a signal reaches.
"""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, counted
from gradrecipes.core.signal_theory import ACTIVATIONS, derivative_moment
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.core.trace.trial_reading import FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.readings import TOO_LARGE, cut_off, kernels, rounded, span, weighted
from gradrecipes.diagnosis.outcome import LEARNING, confidence, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import (
    change_activation,
    normalize_before_the_activation,
    use_fitting_initializer,
)
from gradrecipes.diagnosis.registry import rule

TOO_SMALL = 4.0  # times smaller than the smallest usual spread: a sixteenth of the variance
SMALL_KERNEL_SHARE = 0.5  # of the kernels that are too small
ALIKE_SPREAD = 1e-3  # spread over size of a kernel below which its entries are all alike
MIN_GRADIENT_RATIO = 1e-3  # output gradient of the first weighted layer over that of the last; He nets keep it above .1
SHRINKING_FACTOR = 0.75  # theory's gradient factor per layer below which the activation is to blame; He ReLUs have 1


@rule(
    code="vanishing_initialization",
    kind=Kind.CAUSE,
    title="The signal or the gradient vanishes with the initial weights",
    short="weights too small",
    order=160,
    brings_about=(
        "loss_without_gradient",
        "plain_depth",
        "learning_rate_too_low",
        "stalled_loss",
        "vanishing_gradient",
    ),
)
def vanishing_initialization(trace: Trace) -> Finding | None:
    """Tell whether the initial weights lose the signal on its way through the net."""
    seen = verdict(trace)
    if (seen.state == LEARNING and not seen.suspicious and not cut_off(trace)) or seen.step == 0:
        return None  # what breaks at the first step does not lack signal
    return _too_small(trace) or _shrinking(trace)


def _too_small(trace: Trace) -> Finding | None:
    lost = not verdict(trace).learned  # a matrix of zeros in a layer of the user's own may be meant, as LoRA's is
    read = [one for one in kernels(trace) if one[0].role == "kernel" or (lost and one[0].rms == 0.0)]
    hidden = read[:-1] or read
    small = [weight for weight, _, smaller in hidden if smaller > TOO_SMALL]
    alike = [
        weight
        for weight, larger, _ in hidden
        if weight.std <= ALIKE_SPREAD * weight.rms and min(weight.shape) > 1 and larger <= TOO_LARGE
    ]
    bad = alike or small
    if not read or len(bad) < SMALL_KERNEL_SHARE * len(hidden) or (verdict(trace).learned and not cut_off(trace)):
        return None
    worst = min(bad, key=lambda weight: weight.rms)
    usual = worst.least or 0.0
    if alike:
        title = "The initial weights of a layer are all equal, so its units can never differ"
        said = f"All entries of {worst.path!r} are {rounded(worst.mean)}; an initializer would draw them with"
        so = "Constant"
        why = "All units of such a layer compute the same and receive the same gradient, so they stay equal."
    else:
        times = rounded(usual / worst.rms) if worst.rms else "infinitely many"
        title = f"The initial weights are {times} times too small"
        said = f"The entries of {worst.path!r} have a size of {rounded(worst.rms)}; an initializer would draw them with"
        so = "Too small"
        why = (
            "Each layer shrinks its signal, and the gradient on its way back, so the output hardly depends on the "
            "input and the first layers hardly learn."
        )
    statement = f"{said} a standard deviation of {rounded(usual)}. {so}: {len(bad)} of {len(hidden)} kernels."
    return _finding(
        title,
        f"{why} {statement}",
        worst.layer,
        confidence(trace, FITTING_WEIGHTS),
        (
            Evidence(statement, worst.rms, usual, "Glorot, LeCun or He, by fan-in"),
            *variation_evidence(trace, FITTING_WEIGHTS),
        ),
        (use_fitting_initializer(bad, "relu"), normalize_before_the_activation(trace)),
    )


def _shrinking(trace: Trace) -> Finding | None:
    read = weighted(trace)
    ends = span(read, "output_gradient_norm")
    factors = [factor for layer in read[:-1] if (factor := _factor(trace, layer)) is not None]
    if ends is None or len(factors) < 3 or not ends[0] < MIN_GRADIENT_RATIO * ends[1]:
        return None
    predicted = math.exp(math.fsum(map(math.log, factors)) / len(factors))
    if predicted >= SHRINKING_FACTOR:
        return None
    activation = next(layer.activation for layer in read if layer.activation not in (None, "linear"))
    measured = (ends[0] / ends[1]) ** (1.0 / max(1, len(read) - 1))
    statement = (
        f"The gradient that reaches the first layer's output is {rounded(ends[0] / ends[1])} of that at the last: "
        f"{rounded(measured)} per layer over {counted(len(read), 'layer')}, where {activation} under these weights is "
        f"predicted to multiply it by {rounded(predicted)}."
    )
    return _finding(
        f"The gradient shrinks to {rounded(measured)} of its size per {activation} layer with these initial weights",
        f"{statement} In a healthy net the factor is near 1. A higher learning rate does not make up for it: the "
        "last layers would diverge.",
        read[0].name,
        0.9,
        (Evidence(statement, measured, predicted, "mean-field theory, arXiv 1611.01232"),),
        (*change_activation(trace, activation, "relu"), normalize_before_the_activation(trace)),
    )


def _factor(trace: Trace, layer: LayerSignal) -> float | None:
    """Return the factor per layer that theory predicts for the gradient, or None where it knows none."""
    name = layer.activation
    spread = next((weight for weight, _, _ in kernels(trace) if weight.layer == layer.name), None)
    if spread is None:
        return None
    variance = (spread.fan_in or 0) * spread.std**2
    if name == "softmax":  # over n nearly equal shares its slope is (1 - 1/n) / n at the most
        return math.sqrt(variance) / spread.shape[-1] or None
    if name not in ACTIVATIONS or name in ("linear", "exponential"):
        return None
    pre = variance * (layer.input_rms or 0.0) ** 2
    return math.sqrt(variance * derivative_moment(name, min(pre, 1e6))) or None


def _finding(
    title: str, explanation: str, layer: str, sure: float, evidence: tuple[Evidence, ...], advice: tuple
) -> Finding:
    return Finding(
        code="vanishing_initialization",
        title=title,
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=sure,
        explanation=explanation,
        layer=layer,
        evidence=evidence,
        prescriptions=advice,
    )
