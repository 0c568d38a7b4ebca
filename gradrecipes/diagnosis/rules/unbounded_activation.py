"""unbounded_activation: an activation that grows faster than its input, or in a loop where it must not grow at all.

## What it does
Passes a normal signal of size 1 and one of size 10 through every hidden activation. One whose output grows more than
tenfold (a square, an exponential), or that enlarges even a signal of size 1 (a leaky ReLU with a slope above 1), is a
candidate; so is a ReLU, or another unbounded activation, instead of the tanh of an LSTM or GRU, whose state is then
unbounded too. It fires where the trial is not finite, diverges, or starts far above a constant prediction.

## Why it is bad
A layer that squares turns a signal of 10 into 100 and the next one into 10,000: no initializer prevents that, since it
fits one size only. A gated cell is designed for a bounded state; with ReLU the state adds up, step by step.

## Example
```python
keras.layers.Dense(64, activation="exponential")
keras.layers.LSTM(64, activation="relu")
```

## Remedy
ReLU, GELU or SiLU in feed-forward layers, tanh in recurrent cells; if you need the function, normalize before it.

## References
- Hochreiter and Schmidhuber, "Long short-term memory", 1997: the bounded squashing of the cell.
- Poole et al., arXiv 1606.05340: fixed points of the signal's size.
"""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.core.trace.trial_reading import FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.data_facts import arrays
from gradrecipes.diagnosis.facts.readings import RECURRENT, WEIGHTED, hidden, layers, number, rounded, weights
from gradrecipes.diagnosis.outcome import fixed_by, verdict
from gradrecipes.diagnosis.prescriptions import change_activation, normalize_before_the_activation
from gradrecipes.diagnosis.registry import FAILED_RUN, LONG_STEPS, rule

MIN_EXPONENT = 1.25  # log10 of the answer to ten times the input; a ReLU has 1, a square 2
MIN_GAIN = 1.1  # answer to a signal of size 1; a ReLU has .71, linear 1, a leaky ReLU of slope 2 has 1.58
GATED = {"LSTM", "GRU", "LSTMCell", "GRUCell", "ConvLSTM1D", "ConvLSTM2D"}
WITHOUT_BOUND = {"relu", "leaky_relu", "elu", "selu", "linear", "exponential", "softplus", "silu", "swish", "gelu"}
USUAL_SIGNAL = 100.0  # size of a signal that is nothing unusual
SIGNAL_JUMP = 1e3  # output over input of an operation, which no healthy one reaches
FAR_START = 5.0  # loss at the start over that of a constant prediction


@rule(
    code="unbounded_activation",
    kind=Kind.CAUSE,
    title="An activation grows faster than its input",
    short="an activation that grows faster than its input",
    order=110,
    brings_about=("failing_step", "exploding_initialization", "saturated_units", *LONG_STEPS, *FAILED_RUN),
)
def unbounded_activation(trace: Trace) -> Finding | None:
    """Tell whether an activation makes the signal run away."""
    seen = verdict(trace)
    if not (seen.unhealthy or seen.start_over_baseline >= FAR_START or not seen.learned):
        return None
    gated = [layer for layer in layers(trace) if layer.kind in GATED and layer.activation in WITHOUT_BOUND]
    odd = [layer for layer in hidden(trace) if _runs_away(layer) and layer.kind not in GATED]
    if odd:
        return _of_layers(trace, odd, seen.unhealthy)
    jump = _jump(trace)
    if jump is not None and (seen.unhealthy or seen.start_over_baseline >= FAR_START):
        return _of_operation(trace, *jump)
    if gated and (seen.unhealthy or seen.start_over_baseline >= FAR_START):
        return _of_cells(trace, gated)
    return None


def _runs_away(layer: LayerSignal) -> bool:
    exponent, gain = layer.activation_exponent, layer.activation_gain
    if exponent is None or gain is None:
        return False
    of_ten = gain * 10.0 ** min(exponent, 37.0)  # behind a threshold it is less than 10, however steep the way there
    return (exponent > MIN_EXPONENT and of_ten > 10.0 * MIN_GAIN) or (gain > MIN_GAIN and exponent > 0.9)


def _of_layers(trace: Trace, odd: list[LayerSignal], broke: bool) -> Finding:
    worst = max(odd, key=lambda layer: (layer.activation_exponent or 0.0, layer.activation_gain or 0.0))
    name = worst.activation or worst.kind
    exponent, gain = worst.activation_exponent or 0.0, worst.activation_gain or 0.0
    statement = (
        f"{name} in {worst.name!r} turns a signal of size 1 into {rounded(gain)}, and one of size 10 into "
        f"{rounded(gain * 10.0 ** min(exponent, 37.0))}; a ReLU gives 0.71 and 7.1."
    )
    sizes = f" Its output on this batch has a size of {rounded(worst.output_rms)}." if worst.output_rms else ""
    return Finding(
        code="unbounded_activation",
        title=f"The activation {name} grows faster than its input",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9 if broke else 0.8,
        explanation=(
            f"{statement}{sizes} Signal and gradient then have no stable size: a signal that is slightly too large "
            "becomes far too large in the next layer, and a small step in the weights changes the output a lot."
        ),
        layer=worst.name,
        evidence=(Evidence(statement, exponent, 1.0, "the activation itself, on quantiles of a normal signal"),),
        prescriptions=(*change_activation(trace, name, "relu"), normalize_before_the_activation(trace)),
    )


def _jump(trace: Trace) -> tuple[LayerSignal, float] | None:
    """Return the first layer whose own arithmetic makes of usual numbers a thousand times larger ones, and of what.

    Arithmetic of a composite layer stands between its inner layers: then it is the layer that such numbers enter.
    """
    largest = max((number(array.rms) or 0.0 for array in arrays(trace, parts=("inputs",))), default=0.0)
    weighty = fixed_by(trace, FITTING_WEIGHTS)
    for layer in layers(trace):
        size = layer.output_rms
        size = math.inf if size is None and layer.nonfinite_share else size or 0.0
        of_weights = layer.kind in WEIGHTED | RECURRENT or any(one.layer == layer.name for one in weights(trace))
        entered = max(largest, layer.input_rms or 0.0)
        if not of_weights and 0.0 < entered < USUAL_SIGNAL and size > SIGNAL_JUMP * max(entered, 1.0):
            return layer, entered
        if not weighty and 0.0 < largest < USUAL_SIGNAL and (layer.input_rms or 0.0) > SIGNAL_JUMP * max(largest, 1.0):
            return layer, largest
        largest = max(largest, size)
    return None


def _of_operation(trace: Trace, layer: LayerSignal, entered: float) -> Finding:
    enters = (layer.input_rms or 0.0) > SIGNAL_JUMP * max(entered, 1.0)  # what comes before it does so
    size = layer.input_rms if enters else layer.output_rms
    became = "more than float32 holds" if size is None else f"a size of {rounded(size)}"
    statement = (
        f"The arithmetic before {layer.name!r} ({layer.kind}) turns numbers of root mean square {rounded(entered)} at "
        f"most into {became}, though the layers around it do not."
        if enters
        else f"{layer.name!r} ({layer.kind}) turns an input of root mean square {rounded(entered)} at most into "
        f"{became}, without weights that would do so."
    )
    what = f"What enters {layer.name!r}" if enters else f"The output of {layer.name!r}"
    return Finding(
        code="unbounded_activation",
        title=f"{what} grows faster than {'the outputs before it' if enters else 'its input'}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.85,
        explanation=(
            f"{statement} An exponential, a power or a product of signals does that: it has no stable size, and "
            "the next such layer overflows. Use a softmax instead of a bare exponential, divide by the square "
            "root of the width before it, or normalize after it."
        ),
        layer=layer.name,
        evidence=(Evidence(statement, size, entered, "this batch, before the trial"),),
        prescriptions=(normalize_before_the_activation(trace),),
    )


def _of_cells(trace: Trace, gated: list[LayerSignal]) -> Finding:
    worst = gated[0]
    statement = (
        f"{worst.name!r} is an {worst.kind} whose state passes through {worst.activation} instead of tanh: the "
        "state is added to at every time step, and nothing bounds it."
    )
    advice = change_activation(trace, str(worst.activation), "tanh")
    return Finding(
        code="unbounded_activation",
        title=f"{worst.activation} in {worst.name!r} leaves the recurrent state without a bound",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=f"{statement} Over a long sequence the state and its gradient grow without limit.",
        layer=worst.name,
        evidence=(Evidence(statement, source="keras.layers.LSTM: activation='tanh' by default"),),
        prescriptions=advice,
    )
