"""Prescriptions that several rules share, where no stretch of plain chain is known to write them for."""

from __future__ import annotations

from collections.abc import Iterable

from gradrecipes.core.findings.prescription import Prescription
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import WeightScale
from gradrecipes.diagnosis.prescriptions.keras_lines import (
    compile_lines,
    initializer_for,
    optimizer_line,
    recorded_rate,
)

SHOWN = 4  # names that a line lists


def use_fitting_initializer(weights: Iterable[WeightScale], activation: str | None) -> Prescription:
    """Return the advice to draw these weights from the initializer that belongs to the activation."""
    fitting = initializer_for(activation or "linear")
    names = list(dict.fromkeys(weight.layer for weight in weights))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return Prescription(
        title=f"Use {fitting.name} in {shown}",
        code=(
            "import keras\n\n"
            f"initializer = {fitting.line}\n"
            f"# In {shown}:\n"
            "# keras.layers.Dense(units, activation=..., kernel_initializer=initializer, bias_initializer='zeros')\n"
        ),
        reason=f"It draws weights of standard deviation {fitting.spread}, at which a layer keeps a signal's size.",
        risk="None for training from scratch; weights that were trained already are not touched by an initializer.",
        reference="arXiv 1502.01852 (He), AISTATS 2010 (Glorot)",
    )


def add_residual_blocks(units: int | None = None) -> Prescription:
    """Return the advice to give the gradient a way around every two layers."""
    width = units or 64
    return Prescription(
        title="Give the gradient a way around: residual blocks with a LayerNormalization before each",
        code=(
            "import keras\n\n\n"
            "def block(x):\n"
            "    y = keras.layers.LayerNormalization()(x)\n"
            f"    y = keras.layers.Dense({width}, activation='relu', kernel_initializer='he_normal')(y)\n"
            f"    y = keras.layers.Dense({width}, kernel_initializer='he_normal')(y)\n"
            f"    return keras.layers.Add()([x, y])  # x has {width} units too\n"
        ),
        reason="A skip connection multiplies the gradient by 1, whatever the layers beside it do.",
        risk="Somewhat more time and memory; the learning rate may be tuned again.",
        reference="arXiv 1512.03385 (residual nets), arXiv 2002.04745 (normalization before the block)",
    )


def make_it_shallower(depth: int) -> Prescription:
    """Return the advice to leave layers out."""
    return Prescription(
        title="Use fewer layers",
        code=f"DEPTH = {max(2, depth // 4)}  # hidden layers; there are {depth} now\n",
        reason="A net that trains at a quarter of the depth is better than a deep one that does not.",
        risk="It may be too small for the task; widen the layers first.",
        reference="arXiv 1611.01232: trainable depth",
    )


def normalize_before_the_activation(kind: str = "LayerNormalization") -> Prescription:
    """Return the advice to set the size of a signal anew in every layer."""
    return Prescription(
        title=f"Use {kind} before each activation",
        code=(
            "import keras\n\n\n"
            "def block(units, activation):\n"
            "    return [\n"
            "        keras.layers.Dense(units, use_bias=False),\n"
            f"        keras.layers.{kind}(),\n"
            "        keras.layers.Activation(activation),\n"
            "    ]\n"
        ),
        reason="It brings what reaches the activation to unit size, so that it neither saturates nor grows.",
        risk="Two more parameters a unit and about a tenth more time.",
        reference="arXiv 1607.06450 (LayerNorm)",
    )


def change_activation(old: str, new: str) -> Prescription:
    """Return the advice to use another activation, with the initializer that belongs to it."""
    fitting = initializer_for(new)
    return Prescription(
        title=f"Use {new} instead of {old} in the hidden layers, with {fitting.name}",
        code=(f"import keras\n\nkeras.layers.Dense(64, activation='{new}', kernel_initializer={fitting.line})\n"),
        reason=f"{new} passes a signal on in proportion to its size, so that nothing runs away or stands still.",
        risk="Another activation may want another learning rate.",
        reference="arXiv 1502.01852; AISTATS 2010 (Glorot)",
    )


def set_learning_rate(trace: Trace, factor: float, why: str) -> Prescription:
    """Return the advice to multiply the learning rate."""
    rate = recorded_rate(trace)
    new = (rate or 1e-3) * factor
    verb = "Raise" if factor > 1 else "Lower"
    title = f"{verb} the learning rate" + (f" from {rate:.2g} to {new:.2g}" if rate else f" {factor:g} times")
    return Prescription(
        title=title,
        code="import keras\n\n" + compile_lines(optimizer_line(trace, new)),
        reason=why,
        risk="Watch the first hundred steps; gr.probes.learning_rate_range(model, x, y) finds the usable range.",
        reference="arXiv 1506.01186 (range test)",
    )


def find_the_range() -> Prescription:
    """Return the advice to look at which learning rates the loss falls at all."""
    return Prescription(
        title="Look at which learning rates the loss falls at all",
        code=(
            "import gradrecipes as gr\n\n"
            "curve = gr.probes.learning_rate_range(model, x, y)\n"
            "print(curve.valley)\n"
            "curve.plot()\n"
        ),
        reason="A hundred batches tell a rate that is too low from a net that cannot learn at any.",
        risk="None: the model is put back to what it was.",
        reference="arXiv 1506.01186 (range test)",
    )


def fresh_optimizer(trace: Trace) -> Prescription:
    """Return the advice to begin with the optimizer's usual settings and an empty memory."""
    rate = recorded_rate(trace) or 1e-3
    optimizer = trace.description.optimizer
    name = optimizer.name if optimizer is not None and optimizer.name.isidentifier() else "Adam"
    return Prescription(
        title=f"Compile with a fresh keras.optimizers.{name} and its usual settings",
        code=f"import keras\n\n{compile_lines(f'keras.optimizers.{name}(learning_rate={rate:.2g})')}",
        reason="Its memory then begins from nothing, and its constants are those that were tried on many nets.",
        risk="What the optimizer had learnt of the curvature is lost; a few hundred steps bring it back.",
        reference="arXiv 1412.6980 (Adam: the usual constants)",
    )
