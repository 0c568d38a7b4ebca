"""Notice that weights have grown or are no longer finite, without a copy of them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

MAX_GROWTH = 2.0  # times an earlier norm; see `WeightGrowth`
SAME = 1e-5  # relative difference of the norms of the same weights, summed in another order


class WeightGrowth:
    """Compare the size of a model's weights with that of an earlier time, when they were good.

    Weights whose norm has more than doubled have moved farther than they were large, by the triangle inequality: the
    bound of `SnapshotRing.moved_far`. That is no fault in itself, as weights that begin at zero grow so in every
    training. It is a reason to try a batch with them.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._norm = float("nan")  # the smallest since the weights were last known to be good
        self._never_finite: set[int] = set()  # by id: what was not finite from the beginning, such as a mask of -inf

    def begin(self) -> None:
        """Note the weights with which a fit begins."""
        norm, broken = self._measure()
        self._never_finite = broken - {id(weight) for weight in self._model.trainable_variables}
        self._norm = norm

    def accept(self) -> None:
        """Take the present weights for good ones."""
        self._norm = self._measure()[0]

    def moved_far(self) -> bool:
        """Return whether the weights have more than doubled, are not finite, or were never measured."""
        norm, broken = self._measure()
        if broken <= self._never_finite and norm <= MAX_GROWTH * self._norm:
            self._norm = min(norm, self._norm)
            return False
        return True

    def state_is_finite(self) -> bool:
        """Return whether every weight and moving statistic is finite, apart from those that never were."""
        return self._measure()[1] <= self._never_finite

    def _measure(self) -> tuple[float, set[int]]:
        """Return the L2 norm of the trainable weights, and the ids of all variables that are not finite."""
        values = {id(variable): tf.convert_to_tensor(variable) for variable in self._model.variables}
        values = {key: value for key, value in values.items() if value.dtype.is_floating}
        halves = {key: tf.nn.l2_loss(_in_range(value)) for key, value in values.items()}
        halved = dict(zip(halves, np.array([*halves.values()], np.float64), strict=True))
        suspects = [key for key, value in halved.items() if not np.isfinite(value)]  # it may be the square alone
        broken = {key for key in suspects if not bool(tf.reduce_all(tf.math.is_finite(values[key])))}
        trained = {id(weight) for weight in self._model.trainable_variables}
        return float(np.sqrt(2 * sum(value for key, value in halved.items() if key in trained))), broken


def _in_range(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(value, tf.float32) if value.dtype.size < 4 else value


def weight_norms(model: keras.Model) -> np.ndarray:
    """Return the L2 norm of each weight that is trained, float64 `[weights]`."""
    halves = [tf.nn.l2_loss(_in_range(tf.convert_to_tensor(weight))) for weight in model.trainable_variables]
    return np.sqrt(2 * np.array(halves, np.float64))


def are_other_weights(model: keras.Model, norms: np.ndarray | None) -> bool:
    """Return whether a model has other weights than it had when it had these norms; False where none are known."""
    if norms is None:
        return False
    now = weight_norms(model)
    return now.shape != norms.shape or not np.allclose(now, norms, rtol=SAME, atol=0.0, equal_nan=True)
