"""The private names of Keras by which a model that cannot be built again from a config is copied; a test pins them."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.tracking import Tracker
from tensorflow.python.eager import context as tensorflow_context


def copied_model(model: keras.Model) -> keras.Model:
    """Return a copy of a model, layer by layer and variable by variable, without saving it.

    Keras copies a model by writing and reading a file, which needs a config and registered classes. This copies the
    objects themselves, so any subclassed model can be copied. What was compiled or traced for the model is left out:
    compile the copy.

    Args:
        model: A built model.

    Raises:
        Exception: Whatever an attribute raises that cannot be copied, such as an open file.
    """
    memo: dict[int, Any] = {}
    left_out = {
        name: model.__dict__[name]
        for name in (
            *("optimizer", "_compile_loss", "_compile_metrics", "_compile_config", "_loss_tracker", "history"),
            *("train_function", "test_function", "predict_function"),
        )
        if name in model.__dict__
    }
    for value in left_out.values():
        memo[id(value)] = None
    for layer in model._flatten_layers(include_self=False):
        if layer.built and (isinstance(layer, keras.Sequential) or type(layer).__name__ == "Functional"):
            clone = keras.models.clone_model(layer)  # its graph holds what cannot be copied
            clone.set_weights(layer.get_weights())
            clone.trainable = layer.trainable
            memo[id(layer)] = clone
        for nodes in (layer._inbound_nodes, layer._outbound_nodes):  # calls on symbolic tensors
            memo[id(nodes)] = []
    for nodes in (model._inbound_nodes, model._outbound_nodes):
        memo[id(nodes)] = []
    with _objects_copied_as_they_are():
        made = copy.deepcopy(model, memo)
    made.__dict__.pop("_compile_config", None)  # a file would want it; what is compiled again gets its own
    for part in list(memo.values()):
        if isinstance(part, Tracker):  # it knows what it holds by the ids of the originals
            part.stored_ids = {name: {id(one) for one in held} for name, (_, held) in part.config.items()}
    return made


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """Return what the model was compiled with, the user's own objects; None for a `compile` of the user's own."""
    config = getattr(model, "_compile_config", None)
    return None if config is None else dict(config.config)


@contextlib.contextmanager
def global_tensorflow_seed_kept() -> Iterator[None]:
    """Put TensorFlow's global seed back after the `with` block."""
    context = tensorflow_context.context()
    before = context._seed
    try:
        yield
    finally:
        context._seed = before


@contextlib.contextmanager
def _objects_copied_as_they_are() -> Iterator[None]:
    reduce, track = KerasSaveable.__reduce__, Tracker.track
    copiers = copy._deepcopy_dispatch
    copiers[types.ModuleType] = copiers[type(None)]
    del KerasSaveable.__reduce__  # the one that writes a file
    Tracker.track = lambda self, attribute: attribute
    try:
        yield
    finally:
        KerasSaveable.__reduce__, Tracker.track = reduce, track
        del copiers[types.ModuleType]
