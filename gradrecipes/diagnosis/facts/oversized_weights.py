"""Weights that are too large in a net without a plain chain: by their size, and by the effect of smaller ones."""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import ALL_SCALED, FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.readings import NORMALIZATIONS, count, kernels, layers, rounded
from gradrecipes.diagnosis.outcome import FAR_START, confidence, fixed_by, halved_by, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions.prescribe import normalize_before_the_activation, use_fitting_initializer

TOO_LARGE = 2.0  # times the largest usual standard deviation: four times the variance
HALF, NEAR = 0.5, 2.0  # end and start over the baseline of a net that learns in spite of its weights
SHARE = 0.3  # of the kernels that are too large


def oversized_weights(trace: Trace) -> Finding | None:
    """Return exploding_initialization where kernels are far larger than usual, and the run suffers from it."""
    seen = verdict(trace)
    read = list(kernels(trace))
    large = [(weight, larger) for weight, larger, _ in read if larger > TOO_LARGE]
    far = seen.start_over_baseline >= FAR_START
    if len(large) < max(1.0, SHARE * len(read)):
        return None
    if count(trace, NORMALIZATIONS) > SHARE * len(read) and not seen.unhealthy:
        return None  # a normalization undoes the size of the weights before it
    hurt = seen.unhealthy or far or (not seen.learned and fixed_by(trace, FITTING_WEIGHTS, ALL_SCALED))
    if not hurt and not halved_by(trace, seen, FITTING_WEIGHTS):
        return None
    at_ease = seen.learned and seen.end_over_baseline < HALF and seen.start_over_baseline < NEAR
    worst, larger = max(large, key=lambda pair: pair[1])
    activation = next((layer.activation for layer in layers(trace) if layer.name == worst.layer), None)
    statement = (
        f"The weights of {len(large)} of {len(read)} layers are more than {rounded(TOO_LARGE)} times too large; the "
        f"worst, {worst.path!r}, has a size of {rounded(worst.rms)}, where an initializer gives at most "
        f"{rounded(worst.most)} for {worst.fan_in} inputs."
    )
    start = (
        f" The loss begins at {rounded(seen.start)}; a constant prediction has {rounded(seen.baseline)}." if far else ""
    )
    return Finding(
        code="exploding_initialization",
        title=f"The initial weights of {worst.layer!r} are {rounded(larger)} times too large",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if hurt else Severity.NOTICE if at_ease else Severity.WARNING,
        confidence=confidence(trace, FITTING_WEIGHTS, ALL_SCALED),
        explanation=(
            f"{statement}{start} Each such layer enlarges its signal, forwards and backwards, so outputs, loss and "
            "gradients start far too large and the first steps ruin the weights."
        ),
        layer=worst.layer,
        evidence=(
            Evidence(statement, worst.rms, worst.most, "Glorot, LeCun or He, by fan-in"),
            *variation_evidence(trace, FITTING_WEIGHTS, ALL_SCALED),
        ),
        prescriptions=(
            use_fitting_initializer([weight for weight, _ in large], activation),
            normalize_before_the_activation(trace),
        ),
    )
