"""Hand the data of a study to `fit` without building the same input pipeline anew for every run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_reuse
from gradrecipes.studies.split import Split, leaves

LARGEST = 64 * 2**20  # bytes of training data; an epoch of more takes so long that the pipeline does not matter
BATCH = 32  # samples, where `fit` is not told: Keras' own
# These change which samples `fit` takes or what it makes of them, beyond order and batches.
LEFT_TO_KERAS = ("steps_per_epoch", "validation_steps")


class Feed:
    """Make the data arguments of `fit`: the batches it would make itself, in its own order, but ready.

    For arrays `fit` builds a pipeline that shuffles, slices and gathers, and starts it twice an epoch; for a small
    net that takes longer than the training. Under a global seed the order is the same in every epoch, so one pass
    of that pipeline is taken down, and fed as a plain sequence of batches. The numbers are the same to the bit. Where
    that does not hold, with data of more than 64 MB, or with a strategy of several replicas, `fit` gets the arrays.

    Args:
        split: The data.
    """

    def __init__(self, split: Split):
        self._split = split
        self._made: dict[tuple[str, int], Any] = {}
        size = sum(array.nbytes for array in leaves(split.x, split.y))
        self._small = size <= LARGEST and all(array.dtype.kind in "biuf" for array in leaves(split.x, split.y))

    def arguments(self, model: keras.Model, fit: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of `fit` with the data among them.

        To be called when seed and model are set, for the run that follows.
        """
        split, rest = self._split, dict(fit)
        if not self._ready(model, rest):
            return {**rest, "x": split.x, "y": split.y, "validation_data": (split.x_val, split.y_val)}
        batch_size = rest.pop("batch_size", None) or BATCH
        shuffle, weights = rest.pop("shuffle", True), rest.pop("class_weight", None)
        whole = keras_reuse.epoch_in_order(split.x, split.y, shuffle=shuffle, class_weight=weights)
        for_validation = rest.pop("validation_batch_size", None) or batch_size
        return {
            **rest,
            "x": batches(whole, batch_size),
            "shuffle": False,  # they are in the order of the shuffle
            "validation_data": self._unshuffled("val", split.x_val, split.y_val, for_validation),
        }

    def test_arguments(self, model: keras.Model, fit: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of `evaluate` for the test data, or None without any."""
        split, size = self._split, fit.get("validation_batch_size") or fit.get("batch_size") or BATCH
        if split.x_test is None:
            return None
        if not self._ready(model, fit):
            return {"x": split.x_test, "y": split.y_test, "batch_size": size}
        return {"x": self._unshuffled("test", split.x_test, split.y_test, size)}

    def _ready(self, model: keras.Model, fit: Mapping[str, Any]) -> bool:
        shuffle = fit.get("shuffle", True)
        known = isinstance(shuffle, bool) and not any(fit.get(name) for name in LEFT_TO_KERAS)
        alone = model.distribute_strategy.num_replicas_in_sync == 1 and not tf.distribute.has_strategy()
        count = len(leaves(self._split.x)[0])
        return self._small and known and alone and (not shuffle or keras_reuse.orders_repeat(count))

    def _unshuffled(self, name: str, x: Any, y: Any, batch_size: int) -> Any:
        if (name, batch_size) not in self._made:
            whole = keras_reuse.epoch_in_order(x, y, shuffle=False)
            self._made[name, batch_size] = batches(whole, batch_size)
        return self._made[name, batch_size]


def batches(whole: Any, batch_size: int) -> Any:
    """Return the batches of all samples, as a dataset that is started at next to no cost."""
    count = int(tf.shape(keras.tree.flatten(whole)[0])[0])
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    # As in Keras' own pipeline: where all batches are full, their size is known to the trace.
    even = tf.data.Dataset.from_tensor_slices(whole).batch(batch_size, drop_remainder=count % batch_size == 0)
    return even.with_options(options)
