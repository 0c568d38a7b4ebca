"""exploding_batch_normalization: batch normalization without skip connections multiplies gradients layer by layer.

## What it does
Fires where ten or more weighted layers, each with BatchNormalization and none with a skip connection, multiply the
gradient on its way back by about the factor that theory predicts (1.21 per ReLU layer), so that the first layers
receive thirty times that of the last or more, and the trial failed.

## Why it is bad
BatchNormalization fixes the size of the signal and thereby enlarges the gradient: at initialization by sqrt(pi / (pi -
1)) = 1.21 per ReLU layer, whatever the weights. Over fifty layers that is 14,000-fold. The first steps then ruin the
first layers, and no initializer helps, because the normalization cancels it.

## Example
```python
for _ in range(50):
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Dense(128)(x)))
```

## Remedy
Skip connections around every two layers, with which BatchNormalization works well; or LayerNormalization or
RMSNormalization in its place, which multiply the gradient by 1.00.

## References
- Yang et al., "A mean field theory of batch normalization", arXiv 1902.08129.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, counted
from gradrecipes.core.signal_theory import ACTIVATIONS, batch_normalized_factor
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.data_facts import LEARNED_END
from gradrecipes.diagnosis.facts.readings import count, layers, rounded, span, weighted
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.diagnosis.prescriptions import add_residual_blocks, prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

MIN_LAYERS = 10  # with BatchNormalization, in a row; sixteen of them make 21-fold and train
MIN_GROWTH = 30.0  # output gradient of the first weighted layer over that of the last
HOPELESS_GROWTH = 1000.0  # the same, where a trial begins to learn all the same: no rate suits first and last layers
PER_LAYER = 1.06  # factor; ReLU is predicted 1.21, tanh 1.085, and a sound residual net has about 1


@rule(
    code="exploding_batch_normalization",
    kind=Kind.CAUSE,
    title="Batch normalization without skip connections multiplies the gradients",
    short="batch normalization without skips",
    order=140,
    brings_about=("embedding_spike", "plain_depth", *LONG_STEPS, *FAILED_RUN),
)
def exploding_batch_normalization(trace: Trace) -> Finding | None:
    """Tell whether BatchNormalization multiplies the gradient layer by layer."""
    structure = trace.description
    normalized = count(trace, {"BatchNormalization"})
    seen = verdict(trace)
    if (
        normalized < MIN_LAYERS
        or (structure.plain_depth or normalized) < MIN_LAYERS
        or seen.end_over_baseline < LEARNED_END
    ):
        return None
    read = weighted(trace)
    ends = span(read, "output_gradient_norm")
    if ends is None:
        return None
    total = ends[0] / ends[1]
    measured = total ** (1.0 / max(1, len(read) - 1))
    least = HOPELESS_GROWTH if seen.learned and not seen.slow else MIN_GROWTH
    if total < least or measured < PER_LAYER:
        return None
    names = [layer.activation for layer in layers(trace) if layer.activation in ACTIVATIONS]
    names = [name for name in names if name not in ("linear", "exponential")]
    activation = max(set(names), key=names.count) if names else "relu"
    predicted = batch_normalized_factor(activation)
    statement = (
        f"From the last layer back to the first the output gradient grows {rounded(total)}-fold over "
        f"{counted(len(read), 'layer')}: {rounded(measured)} per layer, where theory gives {rounded(predicted)} for "
        f"BatchNormalization and {activation}, whatever the weights."
    )
    return Finding(
        code="exploding_batch_normalization",
        title=f"BatchNormalization without skip connections multiplies the gradient by {rounded(measured)} per layer",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=(
            f"{statement} The forward pass looks healthy, which hides the problem. A step that suits the last "
            "layers is far too long for the first ones."
        ),
        layer=read[0].name,
        evidence=(Evidence(statement, measured, predicted, "arXiv 1902.08129"),),
        prescriptions=(add_residual_blocks(trace), prescription("layer_normalization")),
    )
