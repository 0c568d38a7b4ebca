"""Let arms of one graph share one traced model: each keeps the values of its variables while another is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import build_optimizer
from gradrecipes.rescue.setup import OWN, Setup


class Stage:
    """Hold one model with its traced step, and the values that belong to the arm whose turn it is.

    Args:
        model: A built, compiled model whose whole state is in variables.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._owner: Any = None
        self._held: dict[int, list[np.ndarray]] = {}

    def begin(self, arm: Any, fresh: keras.Model) -> bool:
        """Give an arm its turn, with the values of a fresh model; return False where the two do not match."""
        build_optimizer(fresh)
        theirs, mine = _state(fresh), _state(self.model)
        if [(tuple(one.shape), one.dtype) for one in theirs] != [(tuple(one.shape), one.dtype) for one in mine]:
            return False
        if fresh is not self.model:
            self._put_aside()
            _assign(mine, [np.array(one) for one in theirs])
        self._owner = arm
        return True

    def resume(self, arm: Any) -> None:
        """Give an arm its turn again."""
        if self._owner is arm:
            return
        self._put_aside()
        _assign(_state(self.model), self._held.pop(id(arm)))
        self._owner = arm

    def leave(self, arm: Any) -> None:
        """Forget an arm."""
        self._held.pop(id(arm), None)
        if self._owner is arm:
            self._owner = None

    def _put_aside(self) -> None:
        if self._owner is not None:
            self._held[id(self._owner)] = [np.array(one) for one in _state(self.model)]


def graph_of(setup: Setup) -> Setup | None:
    """Return what is equal for setups whose steps have one graph; None for one that is traced by itself.

    A constant rate and the initial weights are values of variables. A schedule or a warm-up is a part of the graph, and
    a guard puts a step of its own in place.
    """
    if setup.guard or setup.optimizer == OWN:
        return None
    constant = setup.schedule is None and not setup.warm_up
    rate = {"learning_rate": 0.0, "rate_factor": 1.0} if constant else {}
    return replace(setup, initializers=OWN, **rate)


def _state(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
