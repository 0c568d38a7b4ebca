"""Bound the norm of the gradient by a percentile of the norms of earlier steps."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.tensorflow_private import plain_variable
from gradrecipes.gradients.clipping.method import (
    LARGEST_BOUND,
    Clipped,
    SerializableMethod,
    StepGradients,
    bounded_globally,
    require_between,
    require_count,
    require_positive,
)

LARGEST_WINDOW = 100_000  # steps; a selection from more would cost more than a step of a small network


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_percentile(SerializableMethod):  # noqa: N801
    """Bound the whole gradient by the p-th percentile of its own past norms, so that no bound need be tuned.

    With the default, nine steps of ten are clipped to the level of the calmest tenth: the step is nearly of
    constant length, and its direction is kept. Take 90 or more where only spikes are to be cut.

    The norms that are remembered are those before clipping, unscaled, of applied steps; a norm that is not
    finite, or zero, never enters. This step's own norm is not among them, so that a spike cannot raise the
    bound that is to catch it. The percentile is always a norm that was observed (the lower one where it falls
    between two): a mean of neighbours would be drawn up by a single spike as long as the memory is short.
    Without `max_norm` the very first step has no bound, as there is no past. A run that explodes for longer
    than the window forgets what healthy norms were.

    Args:
        percentile: p, above 0 and at most 100.
        window: Number of earlier norms that count, from 1 to 100,000.
        max_norm: A bound that holds besides, the first step included; None for none.

    References:
        Seetharaman et al. 2020, "AutoClip", arXiv 2007.14469. There the current norm counts too, and the
        history is the whole run.
    """

    percentile: float = 10.0
    _: KW_ONLY
    window: int = 1000
    max_norm: float | None = None

    def __post_init__(self):
        require_between(self.percentile, "percentile", 0, 100, "10 clips nine steps of ten, 90 clips one step of ten.")
        require_count(self.window, "window", "AutoClip works well from about 1000.")
        require_between(self.window, "window", 0, LARGEST_WINDOW, "A shorter window follows the training faster.")
        if self.max_norm is not None:
            require_positive(self.max_norm, "max_norm", "max_norm")

    def make_state(self, tensors: int) -> tuple[tf.Variable, ...]:
        """Return the past norms, float32 `[window]`, the largest float32 where none is, and how many have entered."""
        past = plain_variable(np.full(self.window, LARGEST_BOUND, np.float32), name="past_norms")
        return past, plain_variable(0, dtype=tf.int64, name="entered_norms")

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`."""
        past, entered = step.state
        count = entered.read_value()
        bound = percentile_of_past(past.read_value(), count, self.percentile)
        if self.max_norm is not None:
            bound = tf.minimum(bound, self.max_norm)
        clipped = bounded_globally(step, bound)

        norm = tf.cast(step.unscaled_norm, tf.float32)
        enters = step.may_enter & (norm > 0) & tf.math.is_finite(norm)
        place = tf.reshape(count % self.window, [1])
        kept = tf.where(enters, norm[None], tf.gather(past.read_value(), place))
        past.scatter_nd_update(place[:, None], kept)
        entered.assign_add(tf.cast(enters, tf.int64))
        return clipped


def percentile_of_past(past: tf.Tensor, count: tf.Tensor, percentile: float) -> tf.Tensor:
    """Return the p-th percentile of the norms remembered so far, or the largest float32 where there is none.

    Args:
        past: float32 `[window]`, norms in any order, the largest float32 where none is yet.
        count: int64 scalar, how many norms have ever entered.
        percentile: p, above 0 and at most 100.
    """
    window = past.shape[0]
    lowest, _ = tf.math.top_k(-past, k=math.floor(percentile * (window - 1) / 100) + 1)  # the sought one is the last
    remembered = tf.cast(tf.minimum(count, window), tf.float64)
    rank = tf.cast(tf.floor(percentile * (tf.maximum(remembered, 1.0) - 1.0) / 100.0), tf.int64)
    return tf.minimum(-tf.gather(lowest, rank), LARGEST_BOUND)
