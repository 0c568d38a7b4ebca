"""The prescriptions that mend a loss: clip, use Keras' own on logits, do not divide by targets."""

from __future__ import annotations

from collections.abc import Sequence

from gradrecipes.core.findings import Prescription
from gradrecipes.diagnosis.facts.data_facts import Head


def safe_arithmetic() -> Prescription:
    """Return the advice to keep logarithms, roots and divisions away from 0."""
    return Prescription(
        title="Keep the arithmetic away from 0",
        code=(
            "import keras\n\n"
            "epsilon = 1e-7  # keras.config.epsilon(); 1e-4 in float16\n"
            "probability = keras.ops.clip(probability, epsilon, 1 - epsilon)  # before a logarithm\n"
            "root = keras.ops.sqrt(square + epsilon)                          # before a square root\n"
            "ratio = numerator / (denominator + epsilon)                      # before a division\n"
        ),
        reason="Then value and slope are finite wherever the net may get to.",
        risk="Inside a `where` it must stand before the operation: the branch not taken has a gradient too.",
        reference="Goodfellow, Bengio, Courville, Deep Learning, section 4.1",
    )


def safe_cross_entropy(own: Sequence[Head]) -> tuple[Prescription, ...]:
    """Return the advice to use Keras' loss on logits, where the last activation says that a cross-entropy is meant."""
    activation = own[0].activation if own else ""
    loss = {"sigmoid": "BinaryCrossentropy", "softmax": "CategoricalCrossentropy"}.get(activation)
    if loss is None:
        return ()
    return (
        Prescription(
            title=f"Use Keras' own {loss} on logits",
            code=(
                "import keras\n\n"
                f"last = keras.layers.Dense({own[0].units or 'units'})  # without the {activation}\n"
                f"model.compile(optimizer=model.optimizer, loss=keras.losses.{loss}(from_logits=True))\n"
            ),
            reason="It computes logarithm and activation in one, exactly and without rounding to 0 or 1.",
            risk=f"The model then gives logits, without the {activation}. For a loss of another kind, clip instead.",
            reference="https://keras.io/api/losses/probabilistic_losses/",
        ),
    )


def undivided_error() -> Prescription:
    """Return the advice to use an error that is not divided by the target."""
    return Prescription(
        title="Use the absolute error, or the squared error of logarithms",
        code=(
            "import keras\n\n"
            "model.compile(optimizer=model.optimizer, loss='mean_absolute_error')\n"
            "# for errors in proportion: loss='mean_squared_logarithmic_error', targets of 0 included\n"
        ),
        reason="Neither divides by the target.",
        risk="Small targets then count less than they did.",
        reference="Hyndman and Koehler 2006, Another look at measures of forecast accuracy",
    )
