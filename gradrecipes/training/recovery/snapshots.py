"""Copies of everything that a training has learned, to go back to."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import learning_rates
from gradrecipes.training.recovery.model_state import variables_of
from gradrecipes.training.recovery.stacked_state import Copy, StackedState

MAX_MOVE = 1.0  # times the weights' own norm between two snapshots: beyond, little of what they were is left
SNAPSHOT_PLACES = ("host", None)


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after a step.

    Args:
        step: Steps that had run.
        rates: The learning rates at which all was well, as `keras_private.learning_rates` names them; infinite where
            none has been tried yet.
        values: The copy of each variable, by its id: weights, optimizer slots and counters, moving statistics, seeds,
            metrics.
    """

    step: int
    rates: dict[str, float]
    values: dict[int, Copy]

    @property
    def proven(self) -> bool:
        """Whether the training was known to be well at these rates."""
        return bool(np.isfinite(list(self.rates.values())).all())


class SnapshotRing:
    """Keep the last few finite states of a training in memory.

    Args:
        model: The model.
        also: Returns further variables, made by `plain_variable`, that go back with the model's.
        capacity: How many are kept. Each takes the memory of the weights and the optimizer's slots.
        place: "host" for the host's memory, None for the device of the variables.
        earlier: The ring of an earlier fit, whose compiled function serves again where the variables are the same.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        also: Callable[[], list[Any]] = list,
        capacity: int = 3,
        place: str | None = "host",
        earlier: SnapshotRing | None = None,
    ):
        self._model = model
        self._also = also
        self._capacity = capacity
        self._place = place
        self._ring: deque[Snapshot] = deque()
        self._state: StackedState | None = None if earlier is None else earlier._state
        self._looking = False
        self._seen: tuple[dict[int, Copy], set[int]] | None = None  # by the present look
        self._never_finite: set[int] | None = None  # by id: what was not finite from the beginning

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def newest(self) -> Snapshot:
        """The last one that was kept."""
        return self._ring[-1]

    @contextlib.contextmanager
    def one_look(self) -> Iterator[None]:
        """Read the state at most once within the `with` block, unless it goes back there."""
        self._looking = True
        try:
            yield
        finally:
            self._looking, self._seen = False, None

    def keep(self, step: int, *, proven: bool = True) -> bool:
        """Copy the state, unless a number in it is not finite; return whether it was kept.

        One that is not proven stands only until there is a better one. Metrics are kept and not judged, nor is what
        was not finite at the beginning, such as a mask of -inf.

        Args:
            step: Steps that have run.
            proven: Whether the training is known to be well at its present learning rate.
        """
        values, broken = self._read()
        finite = self._judge(broken)
        if finite:
            rates = learning_rates(self._model)
            if len(self) == 1 and not self.newest.proven:
                self._ring.clear()
            if len(self) == self._capacity:
                self._ring.popleft()  # before the weights change, and with them the memory that the new one shares
            self._ring.append(Snapshot(step, rates if proven else dict.fromkeys(rates, np.inf), values))
        return finite

    def is_current(self) -> bool:
        """Return whether the model is still, bit by bit, as in the newest snapshot: going back would change nothing."""
        now, then = self._read()[0], self.newest.values
        keys = [id(weight) for weight in self._model.variables]
        return all(key in then and np.array_equal(now[key].value, then[key].value) for key in keys)

    def state_is_finite(self) -> bool:
        """Return whether every number of the state as it is now is finite."""
        return self._judge(self._read()[1])

    def moved_far(self) -> bool:
        """Return whether the weights have moved farther from the newest snapshot than they are large in it."""
        if not len(self):
            return False
        now, then = self._read()[0], self.newest.values
        moved = size = 0.0
        for key in (id(weight) for weight in self._model.trainable_variables):
            if key in then:
                old, new = (np.asarray(copies[key].value).astype(np.float64) for copies in (then, now))
                size += float(np.sum(np.square(old)))
                moved += float(np.sum(np.square(new - old)))
        return not moved <= MAX_MOVE**2 * size

    def drop_newest(self) -> None:
        """Forget the newest one: it was no good."""
        self._ring.pop()

    def restore(self) -> Snapshot:
        """Put the newest one back and return it; it stays in the ring."""
        self._seen = None
        then = {key: copy.value for key, copy in self.newest.values.items()}
        beginnings = {id(variable): variable.beginning for variable in self._also()}  # for those of after the snapshot
        for variable in self._variables():
            value = then.get(id(variable), beginnings.get(id(variable)))
            if value is not None:
                variable.assign(value)
        return self.newest

    def _read(self) -> tuple[dict[int, Copy], set[int]]:
        if self._seen is not None:
            return self._seen
        variables = self._variables()
        if self._state is None or [*map(id, variables)] != [*map(id, self._state.variables)]:
            self._state = StackedState(variables)
        found = self._state.copies(host=self._place == "host")
        self._seen = found if self._looking else None
        return found

    def _judge(self, broken: set[int]) -> bool:
        broken = broken - {id(metric) for metric in self._model.metrics_variables}
        if self._never_finite is None:
            self._never_finite = broken - {id(weight) for weight in self._model.trainable_variables}
        return broken <= self._never_finite

    def _variables(self) -> list[Any]:
        return [*variables_of(self._model), *self._also()]
