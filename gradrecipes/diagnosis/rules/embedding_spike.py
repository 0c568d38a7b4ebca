"""embedding_spike: the gradients or the weights of the embedding are out of proportion to the rest of the net.

## What it does
Compares the embedding with the other layers: the ratio of gradient to weights, typical and at its worst, and the size
of its vectors beside those that an initializer would draw. It fires where the trial is not finite, diverges or does not
learn and the embedding stands out by a factor of a hundred, or where vectors of usual size fix the run.

## Why it is bad
A rare token gets no gradient for a long time and then, in the batch that holds it many times, the sum of all of them.
Adam, whose state for that row is empty, then takes a full step; a plain gradient step is as long as the sum. Vectors
that start large saturate later layers; vectors that start tiny before a normalization make its gradient, which is
divided by their size, huge.

## Example
```python
keras.layers.Embedding(10_000, 64, embeddings_initializer=keras.initializers.RandomNormal(stddev=10.0))
```

## Remedy
Vectors of a size near .05 (Keras' default) or 1 / sqrt(width); clipping by global norm; a lower rate for the embedding.

## References
- Takase et al., "Spike no more", arXiv 2312.16903; Zeng et al., "GLM-130B", arXiv 2210.02414, section 3: shrinking the
  gradient of the embedding.
"""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import WeightScale
from gradrecipes.core.trace.trial_reading import ALL_SCALED, FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.data_facts import LEARNED_END, first_loss_over_baseline
from gradrecipes.diagnosis.facts.readings import layer_descriptions, middle, rounded, weights
from gradrecipes.diagnosis.outcome import (
    FAR_START,
    Verdict,
    confidence,
    fixed_by,
    fixing_rate,
    halved_by,
    starts_near_baseline,
    variation_evidence,
    verdict,
)
from gradrecipes.diagnosis.prescriptions import clip_to_repair, prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

EMBEDDINGS = {"Embedding", "ReversibleEmbedding", "TokenAndPositionEmbedding", "PositionEmbedding"}
STANDS_OUT = 100.0  # gradient over weights of the embedding, over that of the median other layer
MAX_EMBEDDING_RMS_IF_LEARNED = 5.0  # the same, a hundred times what Keras draws
MAX_EMBEDDING_RMS = 0.5  # root mean square of the vectors; Keras draws .03; N(0, 1) counts only if it does harm


@rule(
    code="embedding_spike",
    kind=Kind.CAUSE,
    title="The embedding is out of proportion to the rest of the net",
    short="an embedding out of proportion",
    order=130,
    brings_about=("dead_units", "saturated_units", "attention_logit_growth", *LONG_STEPS, *FAILED_RUN),
)
def embedding_spike(trace: Trace) -> Finding | None:
    """Tell whether the embedding is what throws the net off."""
    seen = verdict(trace)
    if seen.learned and (seen.end_over_baseline < LEARNED_END or not halved_by(trace, seen, FITTING_WEIGHTS)):
        return None
    least = MAX_EMBEDDING_RMS_IF_LEARNED if seen.learned else MAX_EMBEDDING_RMS
    large = [weight for weight in weights(trace) if weight.role == "embedding" and weight.rms > least]
    ratio, layer = _ratio(trace) if seen.unhealthy else (math.nan, None)
    if not (large or ratio > STANDS_OUT):
        return None
    fixed = fixed_by(trace, FITTING_WEIGHTS, ALL_SCALED) or halved_by(trace, seen, FITTING_WEIGHTS)
    fixed = fixed or starts_near_baseline(trace, seen, FITTING_WEIGHTS) or _far_out(trace, large, seen)
    if large and not fixed and not ratio > STANDS_OUT:
        return None
    if large:
        statement = f"The vectors of {large[0].layer!r} have a size of {rounded(large[0].rms)}; Keras' default is 0.03."
        layer = large[0].layer
        measured, expected = large[0].rms, 0.03
    else:
        statement = (
            f"Relative to its weights, the gradient of {layer!r} is up to {rounded(ratio)} times that of the "
            "median layer."
        )
        measured, expected = ratio, 1.0
    return Finding(
        code="embedding_spike",
        title=f"The embedding {layer!r} is out of proportion to the rest of the net",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=_sure(trace, bool(large)),
        explanation=(
            f"{statement} The output of an embedding has the size of its vectors, and the gradient of a row is the "
            "sum over all positions of its token, so one row can move as far as the rest of the net together."
        ),
        layer=layer,
        evidence=(
            Evidence(statement, measured, expected, "arXiv 2312.16903"),
            *(variation_evidence(trace, FITTING_WEIGHTS) if large else ()),
        ),
        prescriptions=(
            prescription("usual_embeddings"),
            *clip_to_repair(trace),
        ),
    )


def _far_out(trace: Trace, large: list[WeightScale], seen: Verdict) -> bool:
    """Say whether vectors a hundred times too large go with a first loss far above the baseline, and no learning."""
    huge = any(weight.rms > MAX_EMBEDDING_RMS_IF_LEARNED for weight in large)
    return huge and not seen.learned and first_loss_over_baseline(trace, seen) >= FAR_START


def _sure(trace: Trace, large: bool) -> float:
    if large:
        return confidence(trace, FITTING_WEIGHTS, ALL_SCALED)
    return 0.6 if fixing_rate(trace, lower=True) else 0.75  # where a lower rate fixes the run, it was the rate


def _ratio(trace: Trace) -> tuple[float, str | None]:
    """Return the largest ||g||/||W|| of an embedding over the median of the other layers, and its name."""
    kinds = [layer.kind for layer in layer_descriptions(trace)]
    places = [place for place, kind in enumerate(kinds) if kind in EMBEDDINGS]
    if not places or not len(trace.samples) or not len(trace):
        return math.nan, None
    rows = np.searchsorted(trace.steps["step"], trace.samples["step"])
    rows = np.clip(rows, 0, len(trace) - 1)
    with np.errstate(all="ignore"):
        ratios = trace.layer_gradient_norm[rows].astype(float) / trace.samples["weight_norm"].astype(float)
    others = middle(np.delete(ratios, places, axis=1))
    own = np.where(np.isfinite(ratios[:, places]), ratios[:, places], 0.0)
    if not others > 0 or not own.size:
        return math.nan, None
    place = places[int(np.argmax(own.max(axis=0)))]
    return float(own.max()) / others, trace.layers[place]
