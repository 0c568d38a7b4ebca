"""Create the weights of a model that was never called, as the first step of a fit does."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_private


def build_on(model: keras.Model, batch: Any) -> None:
    """Build a model that was never called, on one batch, if its call allows it; a train step may do without.

    A train step of the user's own is traced, as the first step of a fit is: it may call its nets on parts of the batch.
    """
    if model.built and _are_built(model):  # `build` may leave layers out
        return
    of_its_own = keras_private.has_own_train_step(model)  # as a GAN's, whose call takes noise
    if of_its_own:
        create_all(model, batch)
        if _are_built(model):
            return
    x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    with contextlib.suppress(Exception if of_its_own else NotImplementedError):
        model(keras.tree.map_structure(lambda part: part[:1], x), training=False)


def create_all(model: keras.Model, batch: Any) -> None:
    """Let layers that only the train step calls create their weights: by tracing it, which takes no step.

    Raises:
        Exception: What the step raises, as in a fit; once the weights are there, another trace may not.
    """
    if not _are_built(model):
        tf.function(model.train_step).get_concrete_function(batch)


def _are_built(model: keras.Model) -> bool:
    """Return whether all layers of a model have their weights."""
    return all(layer.built for layer in keras_private.sublayers(model))
