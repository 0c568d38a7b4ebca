"""Prescriptions that several rules share, where no stretch of plain chain is known to write them for."""

from __future__ import annotations

from collections.abc import Sequence

from gradrecipes.core.findings import Prescription
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import WeightScale
from gradrecipes.diagnosis.prescriptions.keras_lines import (
    compile_lines,
    initializer_for,
    optimizer_line,
    recorded_rate,
)

SHOWN = 4  # names that a line lists


def convolution(trace: Trace) -> str | None:
    """Return the class of the convolutions of a net that is made of them, or None for a net of other layers."""
    kinds = trace.description.kinds
    found = [kind for kind in ("Conv2D", "Conv1D", "Conv3D") if kinds.get(kind, 0) >= max(2, kinds.get("Dense", 0))]
    return found[0] if found else None


def hidden_units(trace: Trace) -> int:
    """Return the most common width of the layers of a net but the last; 64 where it is not known."""
    units = [layer.units for layer in trace.description.layers if layer.units][:-1]
    return max(set(units), key=units.count) if units else 64


def use_fitting_initializer(weights: Sequence[WeightScale], activation: str | None) -> Prescription:
    """Return the advice to draw these weights from the initializer that belongs to the activation."""
    kinds = {weight.kind for weight in weights}
    kind = "Dense" if "Dense" in kinds or not kinds else sorted(kinds)[0]
    first = "filters, kernel_size" if kind.startswith("Conv") else "units"
    fitting = initializer_for(activation or "linear")
    names = list(dict.fromkeys(weight.layer for weight in weights))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return Prescription(
        title=f"Use {fitting.name} in {shown}",
        code=(
            "import keras\n\n"
            f"initializer = {fitting.line}\n"
            f"# In {shown}:\n"
            f"# keras.layers.{kind}({first}, activation=..., kernel_initializer=initializer)\n"
        ),
        reason=f"It draws weights of standard deviation {fitting.spread}, at which a layer keeps a signal's size.",
        risk="None for training from scratch; weights that were trained already are not touched by an initializer.",
        reference="arXiv 1502.01852 (He), AISTATS 2010 (Glorot)",
    )


def add_residual_blocks(trace: Trace) -> Prescription:
    """Return the advice to give the gradient a way around every two layers, of the kind that the net is made of."""
    width, kind = hidden_units(trace), convolution(trace)
    if kind is not None:
        return Prescription(
            title="Add skip connections: residual blocks with batch normalization before each convolution",
            code=(
                "import keras\n\n\n"
                "def block(x):\n"
                "    y = x\n"
                "    for _ in range(2):\n"
                "        y = keras.layers.BatchNormalization()(y)\n"
                "        y = keras.layers.ReLU()(y)\n"
                f"        y = keras.layers.{kind}({width}, 3, padding='same', kernel_initializer='he_normal')(y)\n"
                f"    return keras.layers.Add()([x, y])  # x has {width} channels too\n"
            ),
            reason="A skip connection multiplies the gradient by 1, whatever the layers beside it do.",
            risk="Somewhat more time and memory; the learning rate may be tuned again.",
            reference="arXiv 1603.05027 (normalization and activation before the convolution)",
        )
    return Prescription(
        title="Add skip connections: residual blocks with a LayerNormalization before each",
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


def normalize_before_the_activation(trace: Trace) -> Prescription:
    """Return the advice to set the size of a signal anew in every layer: over the batch in a convolutional net."""
    layer = convolution(trace)
    kind, first, more = (
        ("LayerNormalization", "units", "") if layer is None else ("BatchNormalization", "filters", ", 3")
    )
    return Prescription(
        title=f"Use {kind} before each activation",
        code=(
            "import keras\n\n\n"
            f"def block({first}, activation):\n"
            "    return [\n"
            f"        keras.layers.{layer or 'Dense'}({first}{more}, use_bias=False),\n"
            f"        keras.layers.{kind}(),\n"
            "        keras.layers.Activation(activation),\n"
            "    ]\n"
        ),
        reason="It brings what reaches the activation to unit size, so that it neither saturates nor grows.",
        risk="Two more parameters a unit and about a tenth more time.",
        reference="arXiv 1607.06450 (LayerNorm), arXiv 1502.03167 (BatchNorm)",
    )


def use_layer_normalization() -> Prescription:
    """Return the advice to normalize each sample by itself, where normalizing over the batch multiplies gradients."""
    return Prescription(
        title="Use LayerNormalization instead of BatchNormalization",
        code="import keras\n\nkeras.layers.LayerNormalization()  # in the place of each BatchNormalization\n",
        reason="It does not tie the samples of a batch together, which is what multiplies the gradient in each layer.",
        risk="In convolutional nets batch normalization with skip connections usually generalizes better.",
        reference="arXiv 1902.08129 (mean-field theory of batch normalization)",
    )


def change_activation(trace: Trace, old: str, new: str) -> tuple[Prescription, ...]:
    """Return the advice to use another activation, with the initializer that belongs to it; none for the same one."""
    if old == new:
        return ()
    fitting, layer, units = initializer_for(new), convolution(trace), hidden_units(trace)
    made = f"keras.layers.{layer}({units}, 3, padding='same', " if layer else f"keras.layers.Dense({units}, "
    advice = Prescription(
        title=f"Use {new} instead of {old} in the hidden layers, with {fitting.name}",
        code=f"import keras\n\n{made}activation='{new}', kernel_initializer={fitting.line})\n",
        reason=f"{new} passes a signal on in proportion to its size, so that nothing runs away or stands still.",
        risk="Another activation may want another learning rate.",
        reference="arXiv 1502.01852; AISTATS 2010 (Glorot)",
    )
    return (advice,)


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
