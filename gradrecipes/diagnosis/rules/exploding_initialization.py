"""exploding_initialization: the initial weights multiply the signal in every layer.

## What it does
Looks at the first sample, before any update. In every plain chain (weighted layers without a normalization or a merge
between them) it accumulates the growth of the outputs' root mean square forwards and of the output gradients backwards,
and compares it with what mean-field theory predicts from the initial weights: `sigma_w * sqrt(E[phi^2])` per layer
forwards and `sigma_w * sqrt(E[phi'^2])` backwards, `sigma_w^2 = fan_in * Var(W)`. It fires where the predicted *and*
the measured growth, over the same layers, are large. So neither an unscaled input (large, but not growing) nor a
residual net with suitable weights (growing, but not because of its weights) makes it fire.

## Why it is bad
A factor rho per layer is rho^L over L layers. Long before anything overflows, the loss is steep beyond any
learning rate that would also train the net: with sigma_w^2 = 4 and ReLU, ten layers lose twenty points of accuracy
and thirty become NaN at every rate. The ratio of the first layer's weight gradient to the last one's misses it:
in a ReLU net the forward and backward factors cancel there and the weight gradients are equally huge everywhere.

## Example
```python
keras.layers.Dense(64, activation="relu", kernel_initializer=keras.initializers.RandomNormal(stddev=1.0))
```
sigma_w^2 = 64: each layer multiplies the signal by sqrt(64 / 2) = 5.7, five of them by 5,800.

## Remedy
The initializer that belongs to the activation: `HeNormal` for the ReLU family, `LecunNormal` for SELU, Glorot for tanh
and sigmoid. In a deep plain net, LayerNormalization before each activation with it. BatchNormalization does not help
without skip connections: at initialization it multiplies gradients by 1.21 per ReLU layer whatever the weights.
Clipping keeps the numbers finite but does not repair the weights.

## References
- He et al., "Delving deep into rectifiers", arXiv 1502.01852; Glorot and Bengio, AISTATS 2010.
- Poole et al., arXiv 1606.05340; Schoenholz et al., arXiv 1611.01232: the theory.
- Hanin and Nica, arXiv 1812.05994: the error bar at finite width.
- Yang et al., arXiv 1902.08129: batch normalization explodes without skip connections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, counted
from gradrecipes.core.signal_theory import FLOAT32_MAX, SQUARE_OVERFLOW, overflow_depth
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import ALL_SCALED, FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.chain import Link, Stage, growth_log_std, links, stretches
from gradrecipes.diagnosis.facts.data_facts import LEARNED_END
from gradrecipes.diagnosis.facts.readings import NORMALIZATIONS, TOO_LARGE, count, kernels, layers, rounded
from gradrecipes.diagnosis.keras_lines import initializer_for
from gradrecipes.diagnosis.outcome import FAR_START, confidence, fixed_by, halved_by, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import (
    initialization_prescriptions,
    normalize_before_the_activation,
    use_fitting_initializer,
)
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

TOTAL_GROWTH = 20.0  # factor over the stretch; sigma_w^2 = 4 with ReLU makes 32 in ten layers and costs .2 of accuracy
GROWTH_PER_LAYER = 1.2  # factor per layer; He and LeCun give 1.00 to 1.15, sigma_w^2 = 4 with ReLU 1.41
CERTAIN_GROWTH = 1e4  # factor over the stretch that explodes however slowly each layer grows
CRITICAL_GROWTH = 1e3  # factor over the stretch; in simulations no learning rate trains beyond it
SHARE_EXPLAINED = 0.5  # predicted over measured ln(growth); below it something else than the weights is at work
ERROR_BARS = 2.0  # standard deviations of finite width quoted as "between"
MIN_OWN_GROWTH = 0.5  # ln(growth) of a layer at an end of the run over the steepest's: below, it dilutes the average
EQUAL_GROWTH = 0.1  # difference of ln(growth) of two layers that the draw of their weights explains, down to width 16
LEARNED_START = 2.0  # start over the baseline of a net that learns in spite of its weights
SHARE_TOO_LARGE = 0.3  # of the kernels that are too large

HALF_AT_ZERO = ("sigmoid", "hard_sigmoid")  # their outputs are about 0.5 however small the signal: that is no growth
SQUARED_LOSSES = ("squared_error", "mse")


@dataclass(frozen=True)
class Growth:
    """Hold the growth over some consecutive layers, as natural logarithms, in one direction."""

    backward: bool
    stages: list[Stage]
    links: list[Link]
    measured: float
    predicted: float

    @property
    def per_layer(self) -> float:
        """Measured factor per layer."""
        return math.exp(self.measured / len(self.links))

    @property
    def predicted_per_layer(self) -> float:
        """Factor per layer that the initial weights predict."""
        return math.exp(self.predicted / len(self.links))

    def explodes(self) -> bool:
        """Say whether measurement and theory agree that this growth is large."""
        if not (math.isfinite(self.measured) and self.predicted >= SHARE_EXPLAINED * self.measured):
            return False
        total = min(self.measured, self.predicted)
        steep = total >= math.log(TOTAL_GROWTH) and self.predicted_per_layer >= GROWTH_PER_LAYER
        return steep or total >= math.log(CERTAIN_GROWTH)


@rule(
    code="exploding_initialization",
    kind=Kind.CAUSE,
    title="The initial weights are too large for the depth and the activation",
    short="weights too large",
    order=100,
    brings_about=("dead_units", "saturated_units", "plain_depth", "attention_logit_growth", *LONG_STEPS, *FAILED_RUN),
)
def exploding_initialization(trace: Trace) -> Finding | None:
    """Tell whether the initial weights are too large, by how much, and in which layers."""
    growths = [growth for stretch in stretches(trace) for growth in _growths(stretch)]
    exploding = [growth for growth in growths if growth.explodes()]
    if not exploding or _does_no_harm(trace):
        return _oversized_weights(trace)
    growth = max(exploding, key=_weight)
    worst = _worst(growth)
    critical = growth.measured >= math.log(CRITICAL_GROWTH)
    spread = _spread(growth)
    agrees = abs(growth.measured - growth.predicted) <= max(3.0 * spread, 0.1 * growth.measured)
    return Finding(
        code="exploding_initialization",
        title=f"The initial weights multiply the {_what(growth)} by {rounded(growth.per_layer)} in "
        + ("every layer" if len(growth.links) > 1 else repr(worst.name)),
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if critical else Severity.WARNING,
        confidence=0.95 if agrees else 0.8,
        explanation=_explanation(growth, worst),
        layer=worst.name,
        step=None,
        evidence=_evidence(trace, exploding, growth, worst),
        prescriptions=initialization_prescriptions(trace, growth.stages),
    )


def _does_no_harm(trace: Trace) -> bool:
    """Say whether a trial began near the baseline all the same and got far below it."""
    seen = verdict(trace)
    return seen.learned and seen.start_over_baseline < FAR_START and seen.end_over_baseline < LEARNED_END


def _weight(growth: Growth) -> float:
    """Return how much a growth says; forwards it is easier to picture, so it goes first where both are alike."""
    return min(growth.measured, growth.predicted) * (1.0 if growth.backward else 1.25)


def _growths(stretch: list[Stage]) -> list[Growth]:
    steps = links(stretch)
    found = []
    for backward in (False, True):
        counted = [backward or stage.activation not in HALF_AT_ZERO for stage in stretch[1:]]
        measured = [link.backward if backward else link.forward for link in steps]
        predicted = [link.backward_predicted if backward else link.forward_predicted for link in steps]
        measured, predicted = (
            [growth if counts else 0.0 for growth, counts in zip(growths, counted, strict=True)]
            for growths in (measured, predicted)
        )
        low, high = _steepest(predicted)
        total, expected = math.fsum(measured[low:high]), math.fsum(predicted[low:high])
        found.append(Growth(backward, stretch[low : high + 1], steps[low:high], total, expected))
    return [growth for growth in found if growth.links]


def _steepest(values: list[float]) -> tuple[int, int]:
    """Return (start, stop) of the run with the largest sum, without ends, such as a sound head, that add little."""
    best, best_range, total, start = 0.0, (0, 0), 0.0, 0
    for index, value in enumerate(values):
        if total <= 0:
            total, start = 0.0, index
        total += value
        if total > best:
            best, best_range = total, (start, index + 1)
    start, stop = best_range
    top = max(values[start:stop], default=0.0)
    while stop > start and values[stop - 1] < MIN_OWN_GROWTH * top:
        stop -= 1
    while stop > start and values[start] < MIN_OWN_GROWTH * top:
        start += 1
    return start, stop


def _worst(growth: Growth) -> Stage:
    """Return the stage whose weights add most; among equals, within sampling error, the first."""
    predicted = [link.backward_predicted if growth.backward else link.forward_predicted for link in growth.links]
    return growth.stages[1 + next(i for i, value in enumerate(predicted) if value >= max(predicted) - EQUAL_GROWTH)]


def _spread(growth: Growth) -> float:
    return growth_log_std(growth.stages[1:])


def _what(growth: Growth) -> str:
    return "gradients" if growth.backward else "signal"


def _explanation(growth: Growth, worst: Stage) -> str:
    count = len(growth.links)
    first, last = growth.stages[0].name, growth.stages[-1].name
    what, start, end = ("gradient", last, first) if growth.backward else ("signal", first, last)
    fitting = initializer_for(worst.activation)
    weights = (
        f"The weights of {worst.name!r} are all nearly the same number, so that its {worst.fan_in} inputs add up "
        f"instead of cancelling, and multiply them by {rounded(worst.drift)}."
        if worst.drift
        else f"The weights of {worst.name!r} have a standard deviation of {rounded(worst.weight_std)} at "
        f"{worst.fan_in} inputs, so sigma_w^2 = fan_in * Var(W) = {rounded(worst.variance)}."
    )
    return (
        f"Before the first update the {what} grows {rounded(math.exp(growth.measured))}-fold over "
        f"{counted(count, 'layer')}, from {start!r} to {end!r}: {rounded(growth.per_layer)} per layer, where "
        f"the initial weights predict {rounded(growth.predicted_per_layer)}. {weights} With {worst.activation} a layer "
        f"keeps the size of its signal when the standard deviation is about {fitting.spread} = "
        f"{rounded(fitting.deviation(worst))}, "
        f"which {fitting.name} draws. The growth multiplies from layer to layer, so the loss and the gradients "
        "start far too large: a learning rate low enough not to diverge is too low to train such weights. "
        "Training does not repair this later."
    )


def _evidence(trace: Trace, exploding: list[Growth], growth: Growth, worst: Stage) -> tuple[Evidence, ...]:
    other = [one for one in exploding if one.backward != growth.backward]
    both = [growth, *sorted(other, key=_weight, reverse=True)[:1]]
    evidence = [_compared(one) for one in both]
    if not worst.drift:
        fitting = initializer_for(worst.activation)
        evidence.append(
            Evidence(
                f"The worst layer is {worst.name!r}: its weights have a standard deviation of "
                f"{rounded(worst.weight_std)}; {fitting.name} would give {rounded(fitting.deviation(worst))}.",
                worst.weight_std,
                fitting.deviation(worst),
                f"{fitting.spread}, {worst.fan_in} inputs, {worst.activation}",
            )
        )
    if len({stage.weight_std for stage in growth.stages[1:]}) == 1 and len(growth.links) > 1 and not worst.drift:
        evidence.append(
            Evidence(
                "The weights of these layers have exactly the same standard deviation, as in layers that share "
                "one initializer object: Keras then gives each of them the same matrix, whose powers grow even "
                "faster.",
                worst.weight_std,
                source="a keras.initializers object draws the same values at every call",
            )
        )
    return (*evidence, _overflow(trace, growth))


def _compared(growth: Growth) -> Evidence:
    count, spread = len(growth.links), _spread(growth)
    center = growth.predicted - spread**2  # ln||g||^2 lies beta/2 low at finite width, and spread^2 is beta/4
    low, high = (math.exp((center + side * ERROR_BARS * spread) / count) for side in (-1, 1))
    bar = f" (between {rounded(low)} and {rounded(high)} at these widths)" if spread else ""
    direction = "Backwards, the output gradient" if growth.backward else "Forwards, the output"
    return Evidence(
        f"{direction} grows {rounded(growth.per_layer)}-fold per layer, where the initial weights predict "
        f"{rounded(growth.predicted_per_layer)}{bar} and a suitable initialization gives 1. Over "
        f"{counted(count, 'layer')} that is {rounded(math.exp(growth.measured))}-fold, predicted "
        f"{rounded(math.exp(growth.predicted))}-fold.",
        growth.per_layer,
        growth.predicted_per_layer,
        "mean-field theory, arXiv 1606.05340; width, arXiv 1812.05994",
    )


def _overflow(trace: Trace, growth: Growth) -> Evidence:
    squared = any(name in str(trace.description.loss or "") for name in SQUARED_LOSSES)
    # With a squared loss the error itself grows with the outputs, so both directions count.
    total = math.fsum(link.backward_predicted + squared * link.forward_predicted for link in growth.links)
    rate = max(growth.predicted_per_layer, math.exp(total / len(growth.links)))
    entries, squares = overflow_depth(rate), overflow_depth(rate, largest=SQUARE_OVERFLOW)
    return Evidence(
        f"At {rounded(rate)} per layer the sum of squared gradients overflows float32 after about {squares:.0f} "
        f"layers, and single entries, beyond {FLOAT32_MAX:.1e}, after about {entries:.0f}, starting from a "
        f"gradient of 1 at the output. This part of the net has {len(growth.stages)}; training fails long before "
        "that.",
        float(len(growth.stages)),
        squares,
        "ln(1.8e19) / ln(growth per layer)",
    )


def _oversized_weights(trace: Trace) -> Finding | None:
    """Return exploding_initialization where kernels are far larger than usual, and the run suffers from it."""
    seen = verdict(trace)
    read = list(kernels(trace))
    large = [(weight, larger) for weight, larger, _ in read if larger > TOO_LARGE]
    far = seen.start_over_baseline >= FAR_START
    proven = seen.unhealthy and fixed_by(trace, FITTING_WEIGHTS)
    if len(large) < (1.0 if proven else max(1.0, SHARE_TOO_LARGE * len(read))):
        return None  # a single one is enough where weights of the usual size fix a broken run
    if count(trace, NORMALIZATIONS) > SHARE_TOO_LARGE * len(read) and not seen.unhealthy:
        return None  # a normalization undoes the size of the weights before it
    hurt = seen.unhealthy or far or (not seen.learned and fixed_by(trace, FITTING_WEIGHTS, ALL_SCALED))
    if not hurt and not halved_by(trace, seen, FITTING_WEIGHTS):
        return None
    at_ease = seen.learned and seen.end_over_baseline < LEARNED_END and seen.start_over_baseline < LEARNED_START
    worst, larger = max(large, key=lambda pair: pair[1])
    activation = next((layer.activation for layer in layers(trace) if layer.name == worst.layer), None)
    statement = (
        f"The weights of {len(large)} of {counted(len(read), 'layer')} {'is' if len(large) == 1 else 'are'} more than "
        f"{rounded(TOO_LARGE)} times too large; the worst, {worst.path!r}, has a size of {rounded(worst.rms)}, where "
        f"an initializer gives at most {rounded(worst.most)} for {worst.fan_in} inputs."
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
