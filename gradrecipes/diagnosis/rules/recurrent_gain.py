"""recurrent_gain: the growth or decay at each time step of a recurrent layer multiplies over the sequence.

## What it does
Reads what the recurrent probe measured before training: the factor by which a gradient grows on its way back through
one time step, as a geometric mean over the real sequences, and that of the state on its way forward. It fires where
that factor, over all steps of the sequence, multiplies a gradient or an unbounded state a thousandfold *and* the run
shows it: it is not finite, diverges or learns nothing, or the gradient of that layer is out of proportion to its
weights. It also fires where nothing of a gradient is left after ten steps and the loss stalls, or after all steps and
the answers are the same for all samples, as behind a long padding that is not masked; where a run fails with a gated
cell whose state can grow without limit, and where a run learns nothing while the gradient of a plain recurrent layer
jumps to ten times its usual size.

## Why it is bad
A factor rho per step is rho^T over T steps. The gradient of early time steps is then so much larger (or smaller) than
that of late ones that no learning rate fits both, and a tiny change of the weights changes rho^T enormously: the loss
has cliffs.

## Example
```python
keras.layers.SimpleRNN(100, activation="relu", recurrent_initializer=keras.initializers.Orthogonal(1.4))
keras.layers.LSTM(64, activation="relu")
```

## Remedy
A recurrent matrix that neither grows nor shrinks (orthogonal, or the identity for ReLU), tanh in gated cells, an LSTM
or GRU instead of a plain recurrent layer, clipping by global norm, and shorter sequences.

## References
- Pascanu, Mikolov, Bengio, arXiv 1211.5063: exploding and vanishing gradients through time, and clipping.
- Le, Jaitly, Hinton, arXiv 1504.00941: the identity for ReLU.
- Engelken, Wolf, Abbott, arXiv 2006.02427: Lyapunov exponents of recurrent nets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.probes import RecurrentReading
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.readings import OUT_OF_PROPORTION, gradient_to_weight, number, rounded
from gradrecipes.diagnosis.outcome import OSCILLATING, STALLED, Verdict, verdict
from gradrecipes.diagnosis.prescriptions import clip_to_repair, prescription
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

EXPLODING_GROWTH = 3.0  # log10 of the growth over the sequence; beyond it a net trains at no learning rate
PER_STEP = 1.02  # growth per step; orthogonal tanh layers, LSTM and GRU start at .5 to .9, an identity RNN at 1
GONE_PER_STEP = 0.2  # growth per step: after ten steps float32 (2^-23) keeps nothing of the gradient
GONE_OF_PLAIN = 0.5  # the same of a layer without gates, which orthogonal weights start at .9
EQUAL_ANSWERS = 1e-6  # spread of the answers to the samples over their size: nothing of a sample is left at the end
VANISHING_GROWTH = -6.9  # log10 of the growth over the sequence, 2^-23: what float32 keeps beside 1
LONG_ENOUGH = 10  # steps
SHORT_SEQUENCE = 50  # steps that a plain recurrent layer can be expected to bridge; arXiv 1211.5063 trained up to 200
GRADIENT_JUMP = 10.0  # largest gradient norm of a plain layer over its median, where nothing is learned; noise makes 3
LOOSE_JUMP = 5.0  # the same where the matrix by itself would make a thousandfold of an unbounded state
WILD_JUMP = 100.0  # the same: beyond any doubt
WITHOUT_BOUND = {"relu", "leaky_relu", "elu", "selu", "linear", "exponential", "softplus", "silu", "swish", "gelu"}
GATED = {"LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}


class Gain(NamedTuple):
    """Say which layer grows, in which way, and by how much."""

    layer: RecurrentReading
    way: str  # "backward", "forward", "vanishing", "cell" or "motion"
    per_step: float
    log10_growth: float
    jump: float = math.nan


@rule(
    code="recurrent_gain",
    kind=Kind.CAUSE,
    title="The recurrent weights multiply the gradient at every time step",
    short="a recurrence that multiplies gradients",
    order=120,
    brings_about=(
        "failing_step",
        "loss_without_gradient",
        "saturated_units",
        "vanishing_gradient",
        *LONG_STEPS,
        *FAILED_RUN,
    ),
)
def recurrent_gain(trace: Trace) -> Finding | None:
    """Tell whether a recurrent layer makes gradients explode or vanish over its sequence."""
    layers = trace.probes.recurrent
    if not layers:
        return None
    seen = verdict(trace)
    harmed = seen.unhealthy or not seen.learned
    gains = [gain for layer in layers for gain in _gains(trace, layer, seen, harmed)]
    if not gains:
        return None
    order = ("backward", "forward", "cell", "motion", "vanishing")
    gain = min(gains, key=lambda one: (order.index(one.way), -abs(one.log10_growth)))
    return Finding(
        code="recurrent_gain",
        title=_title(gain),
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if harmed else Severity.WARNING,
        confidence=_confidence(gain, seen),
        explanation=_explanation(gain),
        layer=gain.layer.layer if gain.layer.layer in trace.layers else None,
        evidence=_evidence(trace, gain),
        prescriptions=_prescriptions(trace, gain.layer, gain.way),
    )


def _gains(trace: Trace, layer: RecurrentReading, seen: Verdict, harmed: bool) -> list[Gain]:
    """Return what is wrong with a layer, each with its evidence in the run."""
    found, steps = [], number(layer.steps) or 0.0
    backward, total = number(layer.growth_per_step), number(layer.log10_growth)
    forward = number(layer.state_growth_per_step)
    shown = harmed or _proportion(trace, layer) >= OUT_OF_PROPORTION
    if shown and backward is not None and total is not None and backward >= PER_STEP and total >= EXPLODING_GROWTH:
        found.append(Gain(layer, "backward", backward, total))
    unbounded = layer.activation in WITHOUT_BOUND
    if shown and unbounded and forward is not None and forward >= PER_STEP:
        whole = steps * math.log10(forward)
        if whole >= EXPLODING_GROWTH or layer.nonfinite_step is not None:
            found.append(Gain(layer, "forward", forward, whole))
    gone = GONE_PER_STEP if layer.kind in GATED else GONE_OF_PLAIN
    spread = (trace.probes.trial or TrialReading()).sample_spread
    forgets = spread is not None and spread <= EQUAL_ANSWERS and not seen.learned
    if backward is not None and (backward <= gone or forgets) and seen.state == STALLED and steps >= LONG_ENOUGH:
        whole = steps * math.log10(max(backward, 1e-38))
        if whole <= VANISHING_GROWTH:
            found.append(Gain(layer, "vanishing", backward, whole))
    jump = _jump(trace, layer)
    gated = layer.kind in GATED
    if gated and unbounded and seen.unhealthy:
        found.append(Gain(layer, "cell", backward or math.nan, total or math.nan, jump))
    radius = number(layer.spectral_radius) or 0.0
    loose = unbounded and radius > 1.0 and steps * math.log10(radius) >= EXPLODING_GROWTH
    moves = seen.unhealthy or seen.state in (OSCILLATING, STALLED)
    if layer.kind == "SimpleRNN" and moves and jump >= (LOOSE_JUMP if loose else GRADIENT_JUMP):
        found.append(Gain(layer, "motion", backward or math.nan, total or math.nan, jump))
    return found


def _column(trace: Trace, layer: RecurrentReading) -> int | None:
    return trace.layers.index(layer.layer) if layer.layer in trace.layers else None


def _proportion(trace: Trace, layer: RecurrentReading) -> float:
    column = _column(trace, layer)
    ratio = math.nan if column is None else float(gradient_to_weight(trace)[column])
    return ratio if math.isfinite(ratio) else 0.0


def _jump(trace: Trace, layer: RecurrentReading) -> float:
    """Return the largest gradient norm of the layer before anything broke, over the median; NaN if not measured."""
    column = _column(trace, layer)
    if column is None or not len(trace):
        return math.nan
    norms = trace.layer_gradient_norm[:, column].astype(float)
    finite = norms[np.isfinite(norms)]
    if not len(finite) or not np.median(finite) > 0:
        return math.nan
    return math.inf if np.isinf(norms).any() else float(finite.max() / np.median(finite))


def _confidence(gain: Gain, seen: Verdict) -> float:
    if gain.way in ("backward", "forward"):
        return 0.95 if seen.unhealthy else 0.85
    if gain.way == "cell":
        return 0.9 if gain.jump >= WILD_JUMP else 0.8
    if gain.way == "motion":
        return 0.75 if gain.jump >= WILD_JUMP else 0.65
    return 0.8


def _title(gain: Gain) -> str:
    name, steps = gain.layer.layer, gain.layer.steps
    if gain.way == "forward":
        return f"The state of {name!r} grows {rounded(gain.per_step)}-fold at every time step"
    if gain.way == "cell":
        return f"{gain.layer.activation} in the {gain.layer.kind} {name!r} lets its state grow without limit"
    if gain.way == "motion":
        return f"The gradient through the {steps} time steps of {name!r} jumps {rounded(gain.jump)}-fold"
    size = rounded(gain.per_step)
    change = f"shrinks to {size} of its size" if gain.way == "vanishing" else f"grows {size}-fold"
    return f"The gradient through {name!r} {change} at every time step"


def _explanation(gain: Gain) -> str:
    layer, steps = gain.layer, gain.layer.steps
    name, size = layer.layer, _power(gain.log10_growth)
    if gain.way == "backward":
        return (
            f"Before any training, a gradient grows {rounded(gain.per_step)}-fold at each of {steps} time steps on its "
            f"way back through {name!r}: {size}-fold in total. Early time steps then move the weights so much more "
            "than late ones that no learning rate fits both, and a small change of the weights changes the "
            "product of all steps enormously."
        )
    if gain.way == "forward":
        return (
            f"The state of {name!r} passes through {layer.activation}, which has no bound, and grows "
            f"{rounded(gain.per_step)}-fold at each of {steps} time steps, before any training: {size}-fold in total. "
            "Outputs, loss and gradients grow with it."
        )
    if gain.way == "vanishing":
        return (
            f"On its way back through {name!r} a gradient keeps {rounded(gain.per_step)} of its size at each time "
            f"step: {_power(10 * math.log10(max(gain.per_step, 1e-38)))} of it is left after ten steps, next to "
            f"nothing beside the gradient of later steps. The layer learns from the last few of {steps} steps only."
        )
    if gain.way == "cell":
        return (
            f"{name!r} is an {layer.kind} whose state passes through {layer.activation} instead of tanh. It is "
            f"added to at each of {steps} time steps, and nothing bounds it: as soon as training opens the gates a "
            "little, the state amplifies itself from step to step, and the gradient with it."
        )
    return (
        f"{name!r} is a plain recurrent layer: the gradient passes through the same matrix {steps} times. At the "
        f"start that product was harmless, but during training the gradient jumped to {rounded(gain.jump)} times its "
        "usual size. Where the matrix begins to amplify its own signal the loss has a cliff, and one step at the "
        "cliff moves the weights far away."
    )


def _evidence(trace: Trace, gain: Gain) -> tuple[Evidence, ...]:
    layer, found = gain.layer, []
    steps = layer.steps
    if gain.way in ("backward", "vanishing", "forward"):
        what = "The state" if gain.way == "forward" else "A gradient on its way back"
        found.append(
            Evidence(
                f"{what} is multiplied by {rounded(gain.per_step)} per time step, by {_power(gain.log10_growth)} over "
                f"{steps} steps.",
                gain.per_step,
                1.0,
                "products of Jacobians on the real sequences, arXiv 1211.5063",
            )
        )
    radius = number(layer.spectral_radius)
    if radius is not None and layer.kind not in GATED:
        found.append(
            Evidence(
                f"The largest eigenvalue of the recurrent matrix has a magnitude of {rounded(radius)}.",
                radius,
                1.0,
                "spectral radius; an orthogonal matrix has 1",
            )
        )
    if layer.nonfinite_step is not None:
        statement = f"After {layer.nonfinite_step} time steps the state is not finite any more."
        found.append(Evidence(statement, float(layer.nonfinite_step), source="the untrained net, a real batch"))
    if math.isfinite(gain.jump):
        statement = f"The largest gradient norm of the layer was {rounded(gain.jump)} times its median in the run."
        found.append(Evidence(statement, gain.jump, GRADIENT_JUMP, "this run"))
    ratio = _proportion(trace, layer)
    if ratio >= OUT_OF_PROPORTION:
        statement = f"The first gradient of the layer was {rounded(ratio)} times its weights."
        found.append(Evidence(statement, ratio, 1.0, "gradient norm over weight norm at the first sample"))
    if not found:
        statement = f"The activation of the {layer.kind} is {layer.activation}, which has no bound."
        found.append(Evidence(statement, source="keras.layers.LSTM: activation='tanh' by default"))
    return tuple(found)


def _power(log10: float) -> str:
    """Return ten to a power as a number, or as 1e400 where no float holds it."""
    return rounded(10.0**log10) if abs(log10) < 300 else f"1e{log10:.0f}"


def _prescriptions(trace: Trace, layer: RecurrentReading, way: str) -> tuple[Prescription, ...]:
    """Return what to do, the best first; `way` is "backward", "forward", "vanishing", "cell" or "motion"."""
    clipping = clip_to_repair(trace)  # none where the optimizer clips
    values = {"units": layer.units or 64, "kind": layer.kind}
    advice = []
    if layer.kind in ("LSTM", "GRU"):
        advice += [prescription("recurrent_tanh", **values)] if layer.activation != "tanh" else []
        advice.append(prescription("gated_initializers", **values))
    elif layer.kind == "SimpleRNN":
        key = "recurrent_identity" if layer.activation == "relu" else "recurrent_orthogonal"
        advice += clipping if way == "motion" else [prescription(key, **values)]
        advice.append(prescription("gated_layer", **values))
    elif way == "vanishing" and layer.kind not in GATED:  # a cell of the user's own: no line of Keras is known to fit
        advice.append(prescription("gated_state"))
    counted = any(one.feeds_embedding for one in (trace.probes.data or DataReading()).inputs)
    if way == "vanishing" and counted and not trace.description.masked:
        advice.insert(0, prescription("mask_padding"))
    if way not in ("motion", "vanishing") or not advice:
        advice += clipping
    if layer.steps is not None and layer.steps > SHORT_SEQUENCE:
        advice.append(prescription("shorter_sequences", steps=layer.steps, short=SHORT_SEQUENCE))
    return tuple(advice)
