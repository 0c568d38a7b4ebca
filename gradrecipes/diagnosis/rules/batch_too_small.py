"""batch_too_small: a batch has too few samples for the statistics that are computed over it.

## What it does
Fires on a run that learns nothing, or little with gradients out of proportion to the weights, in two cases. Where the
net holds BatchNormalization and a batch has one or two samples: mean and variance of so few are the samples themselves,
so the output says next to nothing about the input. And where the loss oscillates or stalls, and the noise scale of the
gradient is far above the batch (the lower end of its interval is more than eight times the batch size), or the net
learns with batches eight times larger. It never fires on a run that learns well, however small its batches.

## Why it is bad
The gradient of a batch is the true one plus noise that falls with the size of the batch. Far below the noise scale
nearly all of a step is noise, and steps of the length that suits a large batch add up to a random walk. A
BatchNormalization over one vector returns its offset whatever the input; over two it returns a sign.

## Example
```python
model.fit(x, y, batch_size=1)  # with keras.layers.BatchNormalization() in the model
```

## Remedy
Larger batches; if they do not fit into memory, gradient accumulation, which averages the noise but not the statistics
of BatchNormalization: replace that by LayerNormalization or GroupNormalization. Or a lower learning rate, which
averages over more steps.

## References
- McCandlish et al., arXiv 1812.06162: the noise scale of the gradient.
- Wu, He, arXiv 1803.08494: the error of BatchNormalization in small batches; GroupNormalization.
"""

from __future__ import annotations

from gradrecipes.core.analysis.noise_scale import MAX_NOISE_RATIO
from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import NoiseReading
from gradrecipes.core.trace.trial_reading import LARGER_BATCH, LARGER_BATCH_FACTOR
from gradrecipes.diagnosis.facts.readings import out_of_proportion, rounded
from gradrecipes.diagnosis.keras_lines import optimizer_line, recorded_rate
from gradrecipes.diagnosis.outcome import (
    LIKELY,
    OSCILLATING,
    PROVEN,
    STALLED,
    UNKNOWN,
    UNPROVEN,
    Verdict,
    fixed_by,
    variation,
    variation_evidence,
    verdict,
)
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

TOO_FEW_SAMPLES = 2  # samples, of which BatchNormalization returns mere signs; arXiv 1803.08494, figure 1
USUAL_BATCH = 32  # samples; Keras' default, from which the error of BatchNormalization no longer falls
HEALTHY_END = 0.5  # end over the baseline; healthy nets get below it in a trial that repeats its batches
MAX_PRESCRIBED_BATCH = 4096  # samples that are prescribed


@rule(
    code="batch_too_small",
    kind=Kind.CAUSE,
    title="The batches are too small: their gradients are mostly noise",
    short="batches too small",
    order=220,
    brings_about=(
        "dead_units",
        "exploding_gradient",
        "diverging_loss",
        "oscillating_loss",
        "stalled_loss",
        "vanishing_gradient",
    ),
)
def batch_too_small(trace: Trace) -> Finding | None:
    """Tell whether the batch is too small, and by how much."""
    size = trace.description.batch_size
    seen = verdict(trace)
    if size is None or size < 1 or seen.state == UNKNOWN:
        return None
    return _statistics(trace, int(size), seen) or _noise(trace, int(size), seen)


def _statistics(trace: Trace, size: int, seen: Verdict) -> Finding | None:
    count = _batch_normalizations(trace)
    if size > TOO_FEW_SAMPLES or not count or not _harmed(trace, seen):
        return None
    returns = "its own offset, whatever the input" if size == 1 else "little more than which one is larger"
    layers = f"{count} BatchNormalization layer{'s' if count > 1 else ''}"
    statement = f"The net holds {layers}, and a batch has {size} sample{'s' if size > 1 else ''}."
    tried, fixed = variation(trace, LARGER_BATCH), fixed_by(trace, LARGER_BATCH)
    return Finding(
        code="batch_too_small",
        title=f"BatchNormalization over {'one sample' if size == 1 else 'two samples'} at a time",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=PROVEN if fixed else LIKELY if tried is None else UNPROVEN,
        explanation=(
            f"{statement} BatchNormalization subtracts the mean over the batch and divides by the standard "
            f"deviation over it. For {'one vector' if size == 1 else 'two vectors'} it returns {returns}; only in "
            "images do the positions make up for some of that. Later layers learn from what is left, and at "
            "inference, where moving averages replace the batch, they receive signals that they have never seen."
        ),
        evidence=(
            Evidence(statement, float(size), float(USUAL_BATCH), "arXiv 1803.08494: the error grows as batches shrink"),
            *variation_evidence(trace, LARGER_BATCH),
        ),
        prescriptions=(
            prescription("larger_batches", size=USUAL_BATCH),
            prescription("other_normalization"),
            _accumulate(trace, max(2, USUAL_BATCH // size)),
        ),
    )


def _noise(trace: Trace, size: int, seen: Verdict) -> Finding | None:
    if seen.state not in (OSCILLATING, STALLED):
        return None
    noise = trace.probes.noise or NoiseReading()
    scale, low = noise.noise_scale, noise.low
    far = low is not None and low > MAX_NOISE_RATIO * size
    fixed = fixed_by(trace, LARGER_BATCH)
    if not (far or fixed) or (variation(trace, LARGER_BATCH) is not None and not fixed):
        return None
    larger = LARGER_BATCH_FACTOR * size
    quiet = 2 ** round(low or 0.0).bit_length() if far else larger
    better = min(MAX_PRESCRIBED_BATCH, max(USUAL_BATCH, quiet))
    measured = (
        f"The noise of the gradient is as large as the gradient itself at a batch of {rounded(scale or low)} "
        f"samples; a batch has {size}."
        if far
        else f"The net learns in the same steps with batches of {larger} samples, but not with {size}."
    )
    what = "jumps up and down" if seen.state == OSCILLATING else "stalls"
    facts = [Evidence(measured, low, float(size), "noise scale, arXiv 1812.06162")] if far else []
    return Finding(
        code="batch_too_small",
        title=f"A batch of {size} is too small: its gradient is mostly noise",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=PROVEN if far and fixed else LIKELY if fixed else UNPROVEN,
        explanation=(
            f"The loss {what}. {measured} Nearly all of each step is then noise, and steps of this length add up "
            "to a random walk instead of a descent."
        ),
        evidence=(*facts, *variation_evidence(trace, LARGER_BATCH)),
        prescriptions=(prescription("larger_batches", size=better), _accumulate(trace, max(2, better // size))),
    )


def _harmed(trace: Trace, seen: Verdict) -> bool:
    """Say whether a run learned nothing, or little with gradients that are out of proportion to the weights."""
    if trace.description.vector_batch_normalizations and seen.end_over_baseline > HEALTHY_END:
        return True  # where there are no positions, two samples leave nothing but a sign
    return not seen.learned or (out_of_proportion(trace) and seen.end_over_baseline > HEALTHY_END)


def _batch_normalizations(trace: Trace) -> int:
    return trace.description.normalizations.get("BatchNormalization", 0)


def _accumulate(trace: Trace, steps: int) -> Prescription:
    line = optimizer_line(trace, recorded_rate(trace) or 1e-3, gradient_accumulation_steps=str(steps))
    return prescription("accumulate_gradients", steps=steps, optimizer=line)
