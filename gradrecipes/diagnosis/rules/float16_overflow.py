"""float16_overflow: numbers above 65,504, or below the smallest that half precision holds.

## What it does
Fires where a layer computes in float16 and a value left its range: an output near or beyond 65,504, a NaN or Inf that
began in a float16 layer, or a loss scaler that skips one step after the other. With everything in float16, without a
loss scaler and float32 weights, it also fires where the very first updates are not finite.

## Why it is bad
float16 holds numbers from 6e-8 to 65,504. Sums over many units, squared errors of unscaled targets and exponentials
exceed the upper limit; gradients of small losses and Adam's epsilon of 1e-7 fall below the lower one or lose their
digits, and 0 / 0 is NaN.

## Example
```python
keras.config.set_dtype_policy("float16")  # weights too; "mixed_float16" keeps them in float32
```

## Remedy
`"mixed_bfloat16"`, whose range is that of float32; or `"mixed_float16"` with float32 in the last layers and in the
loss; inputs and targets of unit size.

## References
- Micikevicius et al., "Mixed precision training", arXiv 1710.03740.
- Keras guide, "Mixed precision".
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy, Offender, Operation
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.readings import TOLERATED_BY_SCALER, layers, left_out_by_scaler, rounded
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

LARGEST_FLOAT16 = 65504.0  # largest float16
SCALES = {"UnitNormalization", "LayerNormalization", "RMSNormalization", "Normalization", "Rescaling", "Lambda"}
NEAR_OVERFLOW = 0.5  # of it: the next few steps pass it


@rule(
    code="float16_overflow",
    kind=Kind.CAUSE,
    title="Half precision is too narrow for what the net computes",
    short="half precision",
    order=60,
    brings_about=(
        "missing_warm_up",
        "learning_rate_too_high",
        "exploding_gradient",
        "nonfinite_loss",
        "broken_validation",
        "stalled_loss",
    ),
)
def float16_overflow(trace: Trace) -> Finding | None:
    """Tell whether half precision is too narrow for what this net computes."""
    precision = trace.description.precision or ""
    narrow = [layer for when in ("before", "after") for layer in layers(trace, when) if layer.dtype == "float16"]
    if "float16" not in precision.replace("bfloat16", "") and not narrow:
        return None
    seen = verdict(trace)
    offender = _offender(trace)
    near = [layer for layer in narrow if (layer.output_max or 0.0) > NEAR_OVERFLOW * LARGEST_FLOAT16]
    broken = [layer for layer in narrow if layer.nonfinite_share > 0]
    swallowed = [layer for layer in narrow if _is_swallowed(layer)]
    left_out = float((trace.skipped | left_out_by_scaler(trace)).mean()) if len(trace) else 0.0
    pure = precision == "float16"
    statement = _statement(offender, near, broken or swallowed, left_out, pure and seen.unhealthy)
    if statement is None or (seen.learned and not broken):
        return None
    suspects = broken or swallowed or near
    worst = suspects[0].name if suspects else offender.layer if isinstance(offender, Offender) else None
    return Finding(
        code="float16_overflow",
        title="Half precision is too narrow: a value left the range of float16",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9 if broken or swallowed or offender or pure else 0.8,
        explanation=(
            f"{statement} float16 holds numbers from 6e-8 to 65,504, float32 from 1e-38 to 3e38. What is finite in "
            "float32 becomes Inf or 0 in float16, and Inf - Inf and 0 / 0 are NaN."
        ),
        layer=worst,
        step=seen.step,
        evidence=(Evidence(statement, source="IEEE 754 binary16; arXiv 1710.03740"),),
        prescriptions=(prescription("wider_numbers"),),
    )


def _is_swallowed(layer: LayerSignal) -> bool:
    """Say whether a layer without weights or activation turned numbers into zeros throughout."""
    plain = layer.activation is None and layer.kind in SCALES
    return plain and layer.zero_share == 1.0 and (layer.input_rms or 0.0) > 0.0


def _offender(trace: Trace) -> Offender | Operation | None:
    autopsy = (trace.probes.trial or TrialReading()).autopsy or Autopsy()
    found = [one for one in autopsy.offenders if one.dtype == "float16"]
    if found and found[0].kind not in ("input", "target"):
        return found[0]
    return autopsy.operation if autopsy.operation is not None and autopsy.operation.overflows_float16 else None


def _statement(
    offender: Offender | Operation | None,
    near: list[LayerSignal],
    broken: list[LayerSignal],
    left_out: float,
    pure_and_broken: bool,
) -> str | None:
    if broken and _is_swallowed(broken[0]):
        return (
            f"{broken[0].name!r} returns only zeros, in float16, of an input of root mean square "
            f"{rounded(broken[0].input_rms)}: it divides by something that became infinite there."
        )
    if broken:
        share = rounded(100 * broken[0].nonfinite_share)
        return f"{share}% of the outputs of {broken[0].name!r}, in float16, are not finite."
    if isinstance(offender, Operation):
        return f"The first value that was not finite is of float16: {offender}."
    if offender is not None:
        return f"The first value that was not finite is of float16: {offender.sentence}"
    if near:
        return f"The outputs of {near[0].name!r} reach {rounded(near[0].output_max)}, next to the end of float16."
    if left_out > TOLERATED_BY_SCALER:
        return (
            f"The loss scaler left out {rounded(100 * left_out)}% of the steps, for gradients that float16 cannot hold."
        )
    if pure_and_broken:
        return "Weights, gradients and the optimizer's memory are all in float16, and the updates broke."
    return None
