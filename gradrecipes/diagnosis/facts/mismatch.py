"""What a misfit of loss, last activation and labels is, and the losses in families."""

from __future__ import annotations

from dataclasses import dataclass

from gradrecipes.core.findings import Prescription, Severity

BINARY = {"binary_crossentropy", "binary_focal_crossentropy"}
CATEGORICAL = {"categorical_crossentropy", "categorical_focal_crossentropy"}
SPARSE = {"sparse_categorical_crossentropy"}
CROSS_ENTROPIES = BINARY | CATEGORICAL | SPARSE
# Losses on the difference of prediction and target, entry by entry: arithmetic between shapes that differ broadcasts.
BY_ENTRY = {
    "mean_squared_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "huber",
    "log_cosh",
}


@dataclass(frozen=True)
class Mismatch:
    """One thing about a loss, an output and its targets that cannot be meant.

    Args:
        title: For a headline.
        statement: A sentence with the numbers.
        consequence: What it does to the training.
        measured: The number that was measured, if there is one.
        expected: What should be in its place.
        severity: How bad it is where the run does not contradict.
        sure: Confidence.
        prescription: What to do.
        only_if_held_back: Whether it is told only of a run that does not learn: some nets live well with it.
    """

    title: str
    statement: str
    consequence: str
    prescription: Prescription
    measured: float | None = None
    expected: float | None = None
    severity: Severity = Severity.CRITICAL
    sure: float = 0.97
    only_if_held_back: bool = False


def compile_with(loss: str, title: str, reason: str, *, more: str = "", risk: str = "None.") -> Prescription:
    """Return the advice to compile with another loss, and perhaps to end the model in another way."""
    return Prescription(
        title=title,
        code=f"import keras\n\n{more}model.compile(optimizer=model.optimizer, loss={loss})\n",
        reason=reason,
        risk=risk,
        reference="https://keras.io/api/losses/",
    )


def last_layer(units: int | None, activation: str | None) -> str:
    """Return the line that makes the last layer, with the user's number of units."""
    own = f", activation={activation!r}" if activation else ""
    return f"last = keras.layers.Dense({units or 'units'}{own})  # in place of your last layer\n"


def from_logits(loss: str, logits: bool) -> str:
    """Return the loss of this name as an object that takes logits, or probabilities."""
    return f"keras.losses.{class_of(loss)}(from_logits={logits})"


def class_of(loss: str) -> str:
    """Return Keras' class for the name of a loss function."""
    return "".join(part.capitalize() for part in loss.split("_"))
