"""Ask whether each step draws random numbers anew, or computes with those of its trace again and again."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.compat.random_state import random_numbers_kept, tensorflow_seeded
from gradrecipes.compat.tensorflow_private import inlined
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.drawn_once import DrawnOnce
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)

SAME = 1e-4  # relative difference up to which two losses are one; an eager step rounds otherwise than a graph


def drawn_once(trial: Trial, description: Description, ended: Sequence[tuple[Any, np.ndarray]]) -> DrawnOnce | None:
    """Return what a step computes in Python that its graph holds fixed, such as `np.random.normal(...)`, or None.

    The step is run eagerly twice, from the same weights and with TensorFlow's and Keras' random numbers the same: what
    differs then is made by Python. The graph, which Python made once, has to give the same loss twice, or to draw none
    of the numbers of numpy and Python that the eager step draws.

    Args:
        trial: One that was entered; it is left at `ended`.
        description: Of the model.
        ended: What `Trial.save` returned at the end of its steps.
    """
    if trial.constant_noise:
        return DrawnOnce(f"`keras.random` or `tf.random` with the same seed each time ({trial.constant_noise})")
    if trial.model.run_eagerly or not _is_programmed(trial.model, description):
        return None
    try:
        with random_numbers_kept(trial.model, *sublayers(trial.model)), warnings.catch_warnings(action="ignore"):
            keras.random.uniform((1,))  # the global generator is there before the numbers of Python are watched
            eager, compiled = ([_watched(run, trial, ended) for _ in range(2)] for run in (_eagerly, _compiled))
    except Exception:  # a step that runs in a graph alone
        logger.debug("The train step of %r could not be run eagerly.", trial.model, exc_info=True)
        return None
    finally:
        trial.load(ended)
    moved = (eager[0][1] & eager[1][1]) - (compiled[0][1] | compiled[1][1])
    if not _differ(eager[0][0], eager[1][0]) or (_differ(compiled[0][0], compiled[1][0]) and not moved):
        return None
    source = " and ".join(sorted(moved)) or "numbers that Python makes"
    alike = "loss" in eager[0][0] and not _differ(compiled[0][0], compiled[1][0])
    fixed = compiled[0][0].get("loss") if alike else None
    return DrawnOnce(source, fixed, tuple(values["loss"] for values, _ in eager) if fixed is not None else ())


def _is_programmed(model: keras.Model, description: Description) -> bool:
    """Return whether Python of the user's own runs where a step is traced."""
    if description.own_train_step or description.own_loss or any(one.custom for one in description.outputs):
        return True
    layers = [model, *sublayers(model)]
    return any(isinstance(one, keras.layers.Lambda) or not type(one).__module__.startswith("keras.") for one in layers)


Step = Callable[[Trial], Mapping[str, Any]]


def _watched(run: Step, trial: Trial, ended: Sequence[tuple[Any, np.ndarray]]) -> tuple[dict[str, float], set[str]]:
    """Return the scalars of a step, and whose random numbers it draws."""
    trial.load(ended)
    trial.model.reset_metrics()
    python, state = random.getstate(), np.random.get_state()
    returned = run(trial)
    drawn = {"Python's `random`"} if random.getstate() != python else set()
    same = all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), state, strict=True))
    values = {name: float(value) for name, value in returned.items() if np.ndim(value) == 0}
    return values, drawn if same else drawn | {"`np.random`"}


def _eagerly(trial: Trial) -> Mapping[str, Any]:
    with tensorflow_seeded():
        returned = inlined(trial.model.train_step)(trial.batches[0])
    return returned if isinstance(returned, Mapping) else {}


def _compiled(trial: Trial) -> Mapping[str, Any]:
    logs = trial.continued([1.0]).logs
    return {name: values[0] for name, values in logs.items() if values and not name.startswith("gradient_norm")}


def _differ(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return any(abs(one[name] - other[name]) > SAME * max(abs(one[name]), abs(other[name])) for name in one)
