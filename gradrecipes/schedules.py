"""What Keras' learning-rate schedules lack: a warm-up around any of them, or around a constant rate."""

from __future__ import annotations

import math
from typing import Any

import keras

__all__ = ["WarmUp"]


@keras.saving.register_keras_serializable(package="gradrecipes")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    r"""Raise the learning rate linearly from step to step, then follow the schedule from its beginning.

    Adam's second moments rest on few gradients at first, and the curvature at the start is often the highest of
    the whole training: full steps explode there that are harmless later. With k steps of warm-up, start r and
    schedule η, step t has the rate r + (η(0) - r)·(t + 1)/(k + 1) for t < k, and η(t - k) from then on, so that
    not even the first batch is wasted.

    Keras has `CosineDecay(warmup_steps=...)`; this is for all the others. It is a schedule as any other: what
    scales the rate of a schedule from outside, a guard for one, scales this one as well.

    Args:
        schedule: A Keras schedule, or a constant rate.
        steps: k, training steps of warm-up, at least 1.
        start: r, rate before the first step, not negative.

    Raises:
        ValueError: A number out of range.
        TypeError: `schedule` is neither a schedule nor a number.

    Example:
        >>> warm = WarmUp(0.1, steps=4)
        >>> [round(float(warm(step)), 3) for step in range(6)]
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]

    References:
        Goyal et al. 2017, arXiv 1706.02677, section 2.2; Ma, Yarats 2019, arXiv 1910.04209.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        *,
        steps: int,
        start: float = 0.0,
    ):
        super().__init__()
        if isinstance(schedule, dict):  # from a saved config
            schedule = keras.optimizers.schedules.deserialize(schedule)
        if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            _require_rate("schedule", schedule)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(
                f"`steps` must be a whole number of training steps, at least 1. Received: steps={steps!r}. "
                "Without a warm-up, pass the schedule itself to the optimizer."
            )
        _require_rate("start", start)
        self.schedule = schedule
        self.steps = steps
        self.start = start

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, float32 scalar."""
        step = keras.ops.cast(step, "float32")
        share = keras.ops.minimum((step + 1.0) / (self.steps + 1.0), 1.0)
        climbing = self.start + (self._rate(keras.ops.zeros_like(step)) - self.start) * share
        following = self._rate(keras.ops.maximum(step - self.steps, 0.0))
        return keras.ops.where(step < self.steps, climbing, following)

    def _rate(self, step: Any) -> Any:
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return keras.ops.cast(rate, "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        schedule = self.schedule
        if callable(schedule):
            schedule = keras.optimizers.schedules.serialize(schedule)
        return {"schedule": schedule, "steps": self.steps, "start": self.start}


def _require_rate(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        choice = "a Keras learning-rate schedule or a number" if name == "schedule" else "a number"
        raise TypeError(f"`{name}` must be {choice}. Received: {name}={value!r}.")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` is a learning rate: finite, and not negative. Received: {name}={value!r}.")
