"""The prescriptions of the rules, best first, written with the user's own layers and optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from gradrecipes.core.findings import Prescription
from gradrecipes.core.theory.signal_theory import batch_normalized_factor, layer_normalized_factor
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.chain import Stage
from gradrecipes.diagnosis.facts.readings import say
from gradrecipes.diagnosis.prescriptions.keras_lines import (
    can_be_residual,
    compile_lines,
    initializer_for,
    layer_lines,
    normalized_block_lines,
    optimizer_line,
    recorded_rate,
    residual_block_lines,
)

DEEP = 10  # weighted layers from which a plain net needs normalization too: He alone reaches .58 at 30, .30 at 50
NORMALIZABLE = 4  # units; the normalization of one unit is 0 and that of two is a sign

WARM_UP_RAISES = 2.0  # how much more than the lowered rate a warmed-up run is given to try
WARM_UP_STEPS, DECAY_STEPS = 200, 10_000  # steps; placeholders that the reader adapts to the length of the run


def initialization_prescriptions(trace: Trace, stages: Sequence[Stage]) -> tuple[Prescription, ...]:
    """Return what to do about initial weights that are too large in these layers."""
    initializer = initializer_for(stages[-2].activation)
    narrow = min(stage.units for stage in stages)
    right_size = Prescription(
        title=f"Use {initializer.name} in the layers named here",
        code=layer_lines(stages),
        reason=(
            f"{initializer.name} draws weights of standard deviation {initializer.spread}, which is the size at which "
            f"a {stages[-2].activation} layer neither enlarges nor shrinks what passes through it."
        ),
        risk=(
            "With one neuron a layer the draw decides: a negative weight switches a ReLU chain off. Widen the layers."
            if narrow == 1
            else "None for training from scratch. Weights that were trained already are not touched by an initializer."
        ),
        reference="arXiv 1502.01852 (He), AISTATS 2010 (Glorot), arXiv 1706.02515 (SELU)",
    )
    advice = [right_size]
    if len(stages) >= DEEP and narrow >= NORMALIZABLE:
        skips = can_be_residual(stages)
        advice.insert(0, _add_skips(stages, initializer.name) if skips else _normalize(stages, initializer.name))
    advice.append(clip(trace, "Clip the gradient as protection, after the repair", repairs=False))
    return tuple(advice)


def _add_skips(stages: Sequence[Stage], initializer: str) -> Prescription:
    return Prescription(
        title=f"Use {initializer} in residual blocks with a LayerNormalization before each",
        code=residual_block_lines(stages),
        reason=(
            f"{len(stages)} plain layers are too many for an initializer alone, and for a normalization alone: random "
            "differences between the layers multiply up, and the first updates undo the balance. A skip connection "
            "gives the gradient a way back through every layer that multiplies it by 1, and LayerNormalization "
            f"sets the size of what each block receives. {_why_not_batch(stages[-2].activation, len(stages))}"
        ),
        risk="Two more parameters per unit and block, and somewhat more time; the learning rate may be tuned again.",
        reference="arXiv 1512.03385 (residual nets), arXiv 2002.04745 (normalization before the block)",
    )


def _normalize(stages: Sequence[Stage], initializer: str) -> Prescription:
    activation = stages[-2].activation
    return Prescription(
        title=f"Use {initializer} together with a LayerNormalization before each activation",
        code=normalized_block_lines(stages),
        reason=(
            f"{len(stages)} plain layers are too many for an initializer alone: random differences between the layers "
            "multiply up, and the first updates undo the balance. LayerNormalization sets the size anew in every "
            f"layer. {_why_not_batch(activation, len(stages))}"
        ),
        risk="Two more parameters per unit and about a tenth more time; the learning rate may have to be tuned again.",
        reference="arXiv 1607.06450 (LayerNorm), arXiv 1902.08129 (BatchNorm explodes in plain nets)",
    )


def _why_not_batch(activation: str, depth: int) -> str:
    layer, batch = layer_normalized_factor(activation), batch_normalized_factor(activation)
    if batch < layer + 0.01:
        return f"It multiplies gradients by {say(layer)} per {activation} layer, and does not depend on the batch."
    return (
        f"It multiplies gradients by {say(layer)} per {activation} layer; BatchNormalization in a plain net by "
        f"{say(batch)} whatever the weights, {say(batch**depth)}-fold over {depth} layers. BatchNormalization belongs "
        "into nets with skip connections, LayerNormalization into this one."
    )


def clip(trace: Trace, title: str, *, repairs: bool, learning_rate: float | None = None) -> Prescription:
    """Return the advice to clip by global norm, as a remedy or as protection only."""
    optimizer = optimizer_line(trace, learning_rate or recorded_rate(trace) or 1e-3, global_clipnorm="1.0")
    reason = (
        "It bounds the length of every step, so that one large gradient cannot throw the weights away."
        if repairs
        else "It keeps single steps from destroying the weights. It does not repair them: a net that starts too large "
        "stays finite under clipping and still learns next to nothing."
    )
    return Prescription(
        title=title,
        code="import keras\n\n" + compile_lines(optimizer),
        reason=reason,
        risk=(
            "Keras sums the squares in float32: beyond a norm of 1.8e19 its clip itself makes NaN. The clipping of "
            "gradrecipes.clipping does not."
        ),
        reference="arXiv 1211.5063",
    )


def guard() -> Prescription:
    """Return the advice to train under a guard."""
    return Prescription(
        title="Train under a guard that leaves out such steps and says so",
        code=(
            "import gradrecipes as gr\n\n"
            "guard = gr.GradientGuard()\n"
            "model.fit(x, y, callbacks=[guard])\n"
            "print(guard.events)\n"
        ),
        reason="A step with a NaN or infinite gradient is left out whole: weights and optimizer stay as they were.",
        risk="It protects the run and does not cure it: many skips mean that the cause is still there.",
        reference="arXiv 2204.02311 (PaLM skips and goes on)",
    )


def learning_rate_prescriptions(trace: Trace, rate: float | None, factor: float) -> tuple[Prescription, ...]:
    """Return what to do about steps that are `factor` times too long."""
    times = f"{factor:,.0f}"
    if rate is None:
        lower, better = f"model.optimizer.learning_rate = model.optimizer.learning_rate / {factor:.0f}\n", 1e-3
        title = f"Divide the learning rate by {times}"
    else:
        better = rate / factor
        lower = "import keras\n\n" + compile_lines(optimizer_line(trace, better))
        title = f"Lower the learning rate to {better:.2g}, {times} times less"
    return (
        Prescription(
            title=title,
            code=lower,
            reason="It brings an update back to about a hundredth of the weights, a size at which steps add up.",
            risk="Too low is slow. When it trains, double the rate until it no longer does, and halve it once.",
            reference="arXiv 1506.01186 (range test)",
        ),
        warm_up(trace, better * WARM_UP_RAISES),
        clip(trace, "Clip the gradient by its global norm", repairs=True, learning_rate=better),
    )


def warm_up(trace: Trace, highest: float | None = None) -> Prescription:
    """Return the advice to let the learning rate rise from 0.

    Args:
        trace: The record.
        highest: The rate to rise to; that of the run by default.
    """
    highest = highest or recorded_rate(trace) or 1e-3
    schedule = (
        "import keras\n\n"
        "learning_rate = keras.optimizers.schedules.CosineDecay(\n"
        f"    initial_learning_rate=0.0, warmup_target={highest:.2g}, warmup_steps={WARM_UP_STEPS},\n"
        f"    decay_steps={DECAY_STEPS},  # set it to epochs * steps per epoch, less the warm-up\n"
        ")\n" + compile_lines(optimizer_line(trace, "learning_rate"))
    )
    return Prescription(
        title="Warm the learning rate up",
        code=schedule,
        reason=(
            "The first steps are the dangerous ones: the weights are random and the curvature is high. A rate that "
            "rises from 0 lets the net move to flatter ground, where a higher rate is stable."
        ),
        risk="It helps with the beginning only; a rate that is too high for the rest still diverges after it.",
        reference="arXiv 1706.02677",
    )
