"""What is known of a compiled loss: its name, whether Keras wrote it, what it expects, and which target it takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import keras

from gradrecipes.compat.keras_private import loss_arguments

# Families whose Keras functions take probabilities unless they are told that logits come.
CROSS_ENTROPIES = (
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "sparse_categorical_crossentropy",
)


@dataclass(frozen=True, eq=False)
class OutputLoss:
    """One loss on one output.

    Args:
        loss: What the user gave: a name, a function or a `keras.Loss`; None for an output without loss.
        output: Place of the output among the flattened ones.
        target: Place of its target among the flattened targets, or None.
    """

    loss: Any
    output: int
    target: int | None


def losses_of(model: keras.Model, outputs: int) -> list[OutputLoss]:
    """Return the loss of each output, in the order of the flattened outputs; empty without a compiled loss."""
    given = getattr(model, "loss", None)
    if given is None or not getattr(model, "compiled", False):
        return []
    names = list(getattr(model, "output_names", None) or [])
    if isinstance(given, dict):
        keys = names if names and set(given) <= set(names) else sorted(given)
        parts = [given.get(key) for key in keys]
    elif isinstance(given, list | tuple):
        parts = list(given)
    else:
        parts = [given] * max(1, outputs)
    taken, found = 0, []
    partly = sum(part is not None for part in parts) < len(parts)
    for place, part in enumerate(parts):
        # Keras takes one target for each loss where there are as many of them, else one for each output.
        found.append(OutputLoss(part, place, None if part is None else (taken if partly else place)))
        taken += part is not None
    return found


def describe_loss(loss: Any, *, one_unit: bool = False, sparse: bool = False) -> dict[str, Any]:
    """Return name, class, origin, `from_logits` and settings of a loss, as plain JSON values.

    Args:
        loss: A name, a function or a `keras.Loss`.
        one_unit: Whether the output has a single unit, for the name "crossentropy" leaves the choice to Keras.
        sparse: Whether the targets are whole numbers of another shape than the output, likewise.

    Example:
        >>> describe_loss("mse")["loss"], describe_loss(keras.losses.BinaryCrossentropy())["from_logits"]
        ('mean_squared_error', False)
    """
    if loss is None:
        return {"loss": None, "loss_class": None, "custom": False, "from_logits": None, "config": {}}
    if isinstance(loss, str):
        if loss.lower() in ("crossentropy", "ce"):
            loss = "binary_crossentropy" if one_unit else f"{'sparse_' if sparse else ''}categorical_crossentropy"
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return {"loss": loss, "loss_class": None, "custom": True, "from_logits": None, "config": {}}
    function = getattr(loss, "fn", loss)
    is_class = isinstance(loss, keras.Loss)
    origin = type(loss) if is_class else function
    custom = not _of_keras(origin) or not _of_keras(function)
    name = getattr(function, "__name__", None) if not is_class or hasattr(loss, "fn") else type(loss).__name__
    settings = loss_arguments(loss)
    from_logits = settings.get("from_logits", getattr(loss, "from_logits", None))
    if from_logits is None and name in CROSS_ENTROPIES and not custom:
        from_logits = False
    return {
        "loss": name or type(function).__name__,
        "loss_class": type(loss).__name__ if is_class else None,
        "custom": custom,
        "from_logits": None if from_logits is None else bool(from_logits),
        "config": json.loads(json.dumps({key: value for key, value in settings.items() if key != "fn"}, default=str)),
    }


def _of_keras(part: Any) -> bool:
    module = getattr(part, "__module__", None) or type(part).__module__
    return module.split(".")[0] == "keras"
