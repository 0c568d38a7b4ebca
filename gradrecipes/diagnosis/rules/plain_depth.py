"""plain_depth: too many layers in a row, without skip connections and without normalization.

## What it does
Fires where the longest run of weighted layers without skip connection and without normalization is fifteen or more, the
initial weights have the size that they should have, and the trial did not learn: the loss stalled, diverged, or ended
no better than a constant prediction.

## Why it is bad
Even at the right initialization the size of signal and gradient is a product of as many random factors as there are
layers: ln of the squared norm has a variance of 5 * sum(1 / width), so that thirty layers of width 64 differ by a
factor of five from draw to draw. Worse, two different inputs become more alike in every layer, until the last ones
cannot tell them apart: at the edge of chaos that is a matter of depth, not of size. With He weights, digits are learned
to .97 with ten layers of width 64, to .58 with thirty and to .30 with fifty.

## Example
```python
hidden = [keras.layers.Dense(64, activation="relu") for _ in range(40)]
keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
```

## Remedy
Skip connections with a normalization before each block; otherwise fewer layers.

## References
- He et al., "Deep residual learning", arXiv 1512.03385.
- Hanin and Nica, arXiv 1812.05994; Schoenholz et al., arXiv 1611.01232.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.signal_theory import finite_width_log_std
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.data_facts import LEARNED_END
from gradrecipes.diagnosis.facts.readings import NORMALIZATIONS, count, kernels, rounded, span, weighted
from gradrecipes.diagnosis.outcome import fixing_rate, verdict
from gradrecipes.diagnosis.prescriptions import (
    add_residual_blocks,
    normalize_before_the_activation,
    prescription,
)
from gradrecipes.diagnosis.registry import rule

MIN_PLAIN_DEPTH = 15  # weighted layers; with He weights ten train well and thirty do not
LOTTERY_DEVIATION = 4.0  # standard deviation of ln of the squared gradient, from which single draws differ fifty-fold
USUAL_SPREAD_RATIO = 2.5  # times larger or smaller than a usual spread up to which the weights are not to blame


@rule(
    code="plain_depth",
    kind=Kind.CAUSE,
    title="Too many layers in a row without a skip connection",
    short="too many layers in a row",
    order=190,
    brings_about=("exploding_gradient", "nonfinite_loss", "diverging_loss", "stalled_loss", "vanishing_gradient"),
)
def plain_depth(trace: Trace) -> Finding | None:
    """Tell whether the net is too deep for the plain chain that it is."""
    structure = trace.description
    depth = structure.plain_depth or 0
    seen = verdict(trace)
    if depth < MIN_PLAIN_DEPTH or count(trace, NORMALIZATIONS) >= depth // 3:
        return None
    if fixing_rate(trace, lower=False) or fixing_rate(trace, lower=True):
        return None
    read = list(kernels(trace))
    odd = [weight for weight, larger, smaller in read if larger > USUAL_SPREAD_RATIO or smaller > USUAL_SPREAD_RATIO]
    if not read or len(odd) > len(read) // 3:
        return None
    widths = [weight.fan_out for weight, _, _ in read if weight.fan_out and weight.fan_out > 1]
    spread = finite_width_log_std(widths) if widths else 0.0
    if seen.learned and not seen.slow and not (spread >= LOTTERY_DEVIATION and seen.end_over_baseline > LEARNED_END):
        return None
    statement = (
        f"{depth} weighted layers follow one another without a skip connection; without one, {MIN_PLAIN_DEPTH} are "
        "already many."
    )
    evidence = [Evidence(statement, float(depth), float(MIN_PLAIN_DEPTH), "depth and accuracy on digits, widths of 64")]
    evidence.append(
        Evidence(
            f"At these widths the logarithm of the squared gradient differs by {rounded(spread)} (one standard "
            "deviation) from one draw of the weights to the next, although their size is right.",
            spread,
            0.0,
            "arXiv 1812.05994",
        )
    )
    ends = span(weighted(trace), "output_gradient_norm")
    if ends is not None:
        evidence.append(
            Evidence(
                f"The gradient with respect to the first layer's output is {rounded(ends[0] / ends[1])} times that "
                "of the last.",
                ends[0] / ends[1],
                1.0,
                "this batch",
            )
        )
    return Finding(
        code="plain_depth",
        title=f"{depth} layers in a row without a skip connection are too many to train",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.85,
        explanation=(
            f"{statement} Even with initial weights of a usual size, random differences between so many layers "
            "multiply up, and two different inputs look more alike after each layer, until the last ones cannot tell "
            f"them apart. In the trial the loss {seen.course}."
        ),
        layer=None,
        evidence=tuple(evidence),
        prescriptions=(
            add_residual_blocks(trace),
            normalize_before_the_activation(trace),
            prescription("fewer_layers", fewer=max(2, depth // 4), depth=depth),
        ),
    )
