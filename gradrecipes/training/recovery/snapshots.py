"""Copies of everything that a training has learned, to go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gradrecipes.training.keras_private import learning_rates, optimizers_of


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after a step.

    Args:
        step: Steps that had run.
        rates: The learning rates, as `keras_private.learning_rates` names them.
        values: One array for each variable: weights, optimizer slots and counters, moving statistics, seeds, metrics.
    """

    step: int
    rates: dict[str, float]
    values: tuple[np.ndarray, ...]

    @property
    def finite(self) -> bool:
        """Whether every number in it is finite."""
        return all(map(_is_finite, self.values))


class SnapshotRing:
    """Keep the last few sound states of a training in the host's memory.

    Args:
        model: The model.
        also: Returns further variables that go back with the model's.
        capacity: How many are kept. Each takes the memory of the weights and the optimizer's slots.
    """

    def __init__(self, model: keras.Model, *, also: Callable[[], list[Any]] = list, capacity: int = 3):
        self._model = model
        self._also = also
        self._ring: deque[Snapshot] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def newest(self) -> Snapshot:
        """The last one that was kept."""
        return self._ring[-1]

    def keep(self, step: int) -> bool:
        """Copy the state, unless a number in it is not finite; return whether it was kept."""
        snapshot = self._take(step)
        if snapshot.finite:
            self._ring.append(snapshot)
        return snapshot.finite

    def is_current(self) -> bool:
        """Say whether the model is still, bit by bit, as in the newest snapshot: going back would change nothing."""
        weights = [np.asarray(variable) for variable in self._model.variables]
        return all(np.array_equal(a, b) for a, b in zip(weights, self.newest.values, strict=False))

    def state_is_finite(self) -> bool:
        """Say whether every number of the state as it is now is finite."""
        return self._take(0).finite

    def drop_newest(self) -> None:
        """Forget the newest one: it was no good."""
        self._ring.pop()

    def restore(self) -> Snapshot:
        """Put the newest one back and return it; it stays in the ring."""
        for variable, value in zip(self._variables(), self.newest.values, strict=False):
            variable.assign(value)
        return self.newest

    def _take(self, step: int) -> Snapshot:
        return Snapshot(step, learning_rates(self._model), tuple(np.array(variable) for variable in self._variables()))

    def _variables(self) -> list[Any]:
        model = self._model
        slots = [variable for optimizer in optimizers_of(model) for variable in optimizer.variables]
        return list({id(v): v for v in [*model.variables, *slots, *model.metrics_variables, *self._also()]}.values())


def _is_finite(array: np.ndarray) -> bool:
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.kind != "V":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(float(np.sum(array, dtype=np.float32))):  # most often one cheap pass is enough
            return True
    return bool(np.isfinite(array.astype(np.float32)).all())
