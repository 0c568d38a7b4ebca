"""Copies of everything that a training has learned, to go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import learning_rates
from gradrecipes.training.recovery.model_state import variables_of


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after a step.

    Args:
        step: Steps that had run.
        rates: The learning rates at which all was well, as `keras_private.learning_rates` names them; infinite where
            none has been tried yet.
        values: Each variable's, by its id: weights, optimizer slots and counters, moving statistics, seeds, metrics.
    """

    step: int
    rates: dict[str, float]
    values: dict[int, np.ndarray]

    @property
    def proven(self) -> bool:
        """Whether the training was known to be well at these rates."""
        return bool(np.isfinite(list(self.rates.values())).all())


class SnapshotRing:
    """Keep the last few sound states of a training in the host's memory.

    Args:
        model: The model.
        also: Returns further variables, made by `plain_variable`, that go back with the model's.
        capacity: How many are kept. Each takes the memory of the weights and the optimizer's slots.
    """

    def __init__(self, model: keras.Model, *, also: Callable[[], list[Any]] = list, capacity: int = 3):
        self._model = model
        self._also = also
        self._ring: deque[Snapshot] = deque(maxlen=capacity)
        self._never_finite: set[int] | None = None  # by id: what was not finite from the beginning

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def newest(self) -> Snapshot:
        """The last one that was kept."""
        return self._ring[-1]

    def keep(self, step: int, *, proven: bool = True) -> bool:
        """Copy the state, unless a number in it is not finite; return whether it was kept.

        One that is not proven stands only until there is a better one. Metrics are kept and not judged, nor is what
        was not finite at the beginning, such as a mask of -inf.

        Args:
            step: Steps that have run.
            proven: Whether the training is known to be well at its present learning rate.
        """
        values = {id(variable): np.array(variable) for variable in self._variables()}
        finite = self._judge(values)
        if finite:
            rates = learning_rates(self._model)
            if len(self) == 1 and not self.newest.proven:
                self._ring.clear()
            self._ring.append(Snapshot(step, rates if proven else dict.fromkeys(rates, np.inf), values))
        return finite

    def is_current(self) -> bool:
        """Say whether the model is still, bit by bit, as in the newest snapshot: going back would change nothing."""
        then = self.newest.values
        return all(np.array_equal(np.asarray(weight), then.get(id(weight))) for weight in self._model.variables)

    def state_is_finite(self) -> bool:
        """Say whether every number of the state as it is now is finite."""
        return self._judge({id(variable): np.asarray(variable) for variable in self._variables()})

    def drop_newest(self) -> None:
        """Forget the newest one: it was no good."""
        self._ring.pop()

    def restore(self) -> Snapshot:
        """Put the newest one back and return it; it stays in the ring."""
        beginnings = {id(variable): variable.beginning for variable in self._also()}  # for those of after the snapshot
        then = beginnings | self.newest.values
        for variable in self._variables():
            if id(variable) in then:
                variable.assign(then[id(variable)])
        return self.newest

    def _judge(self, values: dict[int, np.ndarray]) -> bool:
        metrics = {id(metric) for metric in self._model.metrics_variables}
        broken = {key for key, value in values.items() if not is_finite(value)} - metrics
        if self._never_finite is None:
            self._never_finite = broken - {id(weight) for weight in self._model.trainable_variables}
        return broken <= self._never_finite

    def _variables(self) -> list[Any]:
        return [*variables_of(self._model), *self._also()]


def is_finite(array: np.ndarray) -> bool:
    """Say whether every number is finite; of an array of no floating dtype every number is."""
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.kind != "V":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(float(np.sum(array, dtype=np.float32))):  # most often one cheap pass is enough
            return True
    return bool(np.isfinite(array.astype(np.float32)).all())
