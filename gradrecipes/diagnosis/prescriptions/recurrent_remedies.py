"""What to do about a recurrent layer whose steps multiply up, in the terms of that layer."""

from __future__ import annotations

from gradrecipes.core.findings import Prescription
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import RecurrentReading
from gradrecipes.diagnosis.prescriptions.prescribe import clip

GATED = ("LSTM", "GRU")
SHORT = 50  # time steps that a plain recurrent layer can be expected to bridge; arXiv 1211.5063 trained up to 200


def recurrent_prescriptions(trace: Trace, layer: RecurrentReading, way: str) -> tuple[Prescription, ...]:
    """Return what to do, the best first.

    Args:
        trace: The record of the run.
        layer: What the recurrent probe says of the layer.
        way: "backward", "forward", "vanishing", "cell" or "motion".
    """
    clipping = clip(trace, "Clip the gradient by its global norm", repairs=True)
    units, gated = layer.units or 64, layer.kind in GATED
    advice = []
    if gated and layer.activation != "tanh":
        advice.append(_tanh(layer.kind, units))
    if not gated and way != "motion":
        advice.append(_matrix(layer, units))
    if way == "motion":
        advice.append(clipping)
    if not gated:
        advice.append(_gates(units))
    if gated:
        advice.append(_orthogonal(layer.kind, units))
    if way not in ("motion", "vanishing"):
        advice.append(clipping)
    if layer.steps is not None and layer.steps > SHORT:
        advice.append(_shorter(layer.steps))
    return tuple(advice)


def _tanh(kind: str, units: int) -> Prescription:
    return Prescription(
        title=f"Use tanh in the {kind}, which is its default",
        code=f"import keras\n\nkeras.layers.{kind}({units})  # activation='tanh', recurrent_activation='sigmoid'\n",
        reason="The state that the gates let out then lies between -1 and 1, however long the sequence is.",
        risk="None that is known: gated cells were made for it.",
        reference="Hochreiter and Schmidhuber 1997; keras.layers.LSTM",
    )


def _matrix(layer: RecurrentReading, units: int) -> Prescription:
    if layer.activation == "relu":
        return Prescription(
            title="Start the recurrent matrix as the identity",
            code=(
                "import keras\n\nimport gradrecipes as gr\n\n"
                f"keras.layers.SimpleRNN({units}, **gr.initializers.identity_rnn())\n"
            ),
            reason="A ReLU layer with the identity copies its state from step to step: nothing grows, nothing is lost.",
            risk="It grows again if the learning rate is high: begin at 1e-4 or clip the gradient as well.",
            reference="arXiv 1504.00941",
        )
    return Prescription(
        title="Start the recurrent matrix orthogonal, with tanh",
        code=(
            f"import keras\n\nkeras.layers.SimpleRNN({units}, recurrent_initializer=keras.initializers.Orthogonal())\n"
        ),
        reason="An orthogonal matrix changes no length, and tanh only shortens: no gradient grows at the start.",
        risk="Over long sequences the gradient then slowly vanishes; an LSTM or GRU keeps it longer.",
        reference="arXiv 1312.6120 (orthogonal), keras.layers.SimpleRNN: its default",
    )


def _orthogonal(kind: str, units: int) -> Prescription:
    return Prescription(
        title=f"Start the {kind} with Keras' own initializers",
        code=(
            "import keras\n\n"
            f"keras.layers.{kind}({units}, kernel_initializer='glorot_uniform', recurrent_initializer='orthogonal')\n"
        ),
        reason="With them a gradient keeps about four fifths of its size at each step, and grows at none.",
        risk="None for training from scratch.",
        reference="keras.layers.LSTM",
    )


def _gates(units: int) -> Prescription:
    return Prescription(
        title="Use an LSTM or a GRU instead of the plain recurrent layer",
        code=f"import keras\n\nkeras.layers.LSTM({units})\n",
        reason="Its state is carried on by a sum that a gate scales, not by a matrix, so that gradients can pass.",
        risk="Four times the weights and the time of a step.",
        reference="Hochreiter and Schmidhuber 1997",
    )


def _shorter(steps: int) -> Prescription:
    return Prescription(
        title=f"Use shorter sequences than {steps} steps",
        code=f"x = x[:, -{SHORT}:]  # or a Conv1D with strides in front of the recurrent layer\n",
        reason="Growth per step multiplies up over the steps; half of them is the square root of it.",
        risk="What lies further back cannot be learnt.",
        reference="arXiv 1211.5063",
    )
