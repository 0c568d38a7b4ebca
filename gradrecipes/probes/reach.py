"""What slopes do not reach: weights that stay as they are, and data beyond what another net of the step can make."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import frozen_variables, own_variables, replaced, sublayers
from gradrecipes.core.trace.probes import UnreachedData
from gradrecipes.core.trace.trial_reading import CUT_OFF, FROZEN, NO_GRADIENT, NOT_UPDATED, UNTRACKED, StillLayer
from gradrecipes.probes.own_step import run_eagerly
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial import Trial, variable_key
from gradrecipes.training.trial_data import first_samples

logger = logging.getLogger(__name__)

REACH = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0)}
BEYOND = 0.01  # by which data may lie outside, as after a cast
MIN_SHARE = 0.5  # of the entries that lie outside: of standardized data beside a tanh it is a third


def unreached_data(trial: Trial) -> tuple[UnreachedData, ...]:
    """Return which nets are given data that the net whose answers they are also given cannot reach.

    A discriminator that gets pixels of 0 to 255 and what a tanh makes tells them apart by their size alone.

    Args:
        trial: One that was entered; it is left at its start.
    """
    nets = [layer for layer in trial.model.layers if isinstance(layer, keras.Model)]
    if len(nets) < 2:
        return ()
    given: list[tuple[keras.Model, np.ndarray]] = []
    made: list[tuple[keras.Model, np.ndarray]] = []

    def watched(net: keras.Model) -> Callable[..., Any]:
        call = net.call

        @functools.wraps(call)
        def watching(*args: Any, **kwargs: Any) -> Any:
            answers = call(*args, **kwargs)
            given.extend((net, one) for one in _arrays([*args, *kwargs.values()]))
            made.extend((net, one) for one in _arrays(answers))
            return answers

        return watching

    with contextlib.ExitStack() as shadows:
        for net in nets:
            shadows.enter_context(replaced(net, "call", watched(net)))
        run_eagerly(trial, shadows.pop_all())
    found: dict[str, UnreachedData] = {}
    for data in _arrays(keras.utils.unpack_x_y_sample_weight(trial.batches[0])[0]):
        for judge in {id(net): net for net, one in given if _same(one, data)}.values():
            for maker, answer in made:
                reach = REACH.get(_last_activation(maker))
                if reach is None or maker is judge or not any(n is judge and _same(one, answer) for n, one in given):
                    continue
                outside = (data < reach[0] - BEYOND) | (data > reach[1] + BEYOND)
                if outside.mean() > MIN_SHARE:
                    ends = (float(data.min()), float(data.max()), float(outside.mean()))
                    found[judge.name] = UnreachedData(judge.name, maker.name, _last_activation(maker), *reach, *ends)
    return tuple(found.values())


def _arrays(tensors: Any) -> list[np.ndarray]:
    """Return the finite floating-point tensors that can be read, as float32."""
    eager = [one for one in keras.tree.flatten(tensors) if isinstance(one, tf.Tensor) and hasattr(one, "numpy")]
    read = [np.asarray(one) for one in eager if len(one.shape) > 1]
    return [one.astype(np.float32) for one in read if one.dtype.kind in "fiu" and np.isfinite(one).all()]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def _last_activation(net: keras.Model) -> str:
    last = net.layers[-1] if net.layers else None
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    return getattr(getattr(last, "activation", None), "__name__", "")


STILL_SAMPLES = 64  # that are passed through the net to see which weights its answers depend on
SMALL_CHANGE = 0.03  # of weights, over their size: it moves an answer across the jumps of a sign, and revives no ReLU
SAME_ANSWER = 1e-5  # relative difference of an answer from itself


class StillWeights:
    """Find weights that the answers depend on and that a trial leaves as they are: no gradient, or no update.

    Args:
        model: A built model. It is left as it was.
        batch: What `train_step` gets, before the trial.
    """

    def __init__(self, model: keras.Model, batch: Any):
        self._model = model
        self._x = first_samples(keras.utils.unpack_x_y_sample_weight(batch)[0], STILL_SAMPLES)
        self._untracked: list[tuple[Any, np.ndarray]] = []
        try:
            with preserve_state(model), tf.GradientTape() as tape:
                self._answers()
        except Exception:  # a model that is not called as a whole
            return
        tracked = {variable_key(variable) for variable in model.variables}
        read = [one for one in tape.watched_variables() if variable_key(one) not in tracked]
        self._untracked = [(one, np.array(one)) for one in read if len(one.shape) >= 2 and one.dtype.is_floating]

    def after(self, trial: Trial) -> tuple[StillLayer, ...]:
        """Return the layers with such weights, at the end of the recorded run of a trial."""
        largest = np.nan_to_num(trial.trace.layer_gradient_norm).max(axis=0, initial=0.0)
        norms = dict(zip(trial.trace.layers, largest.tolist(), strict=True))
        left = [one for one, value in self._untracked if np.array_equal(np.asarray(one), value)]
        found = [StillLayer(one.name.split(":")[0], int(np.prod(one.shape)), UNTRACKED) for one in left]
        for layer in sublayers(self._model) if trial.asked_for_none else ():
            frozen = [one for one in frozen_variables(layer) if len(one.shape) >= 2]
            found += [StillLayer(layer.name, int(np.prod(frozen[0].shape)), FROZEN)] if frozen else []
        unmoved = {variable_key(variable): (asked, had) for variable, asked, had in trial.unmoved()}
        try:
            with preserve_state(self._model):
                for layer in sublayers(self._model):
                    own = [one for one in own_variables(layer) if variable_key(one) in unmoved]
                    if norms.get(layer.name, 0.0) > 0.0 or not any(len(one.shape) >= 2 for one in own):
                        continue
                    asked, had = (
                        bool(trial.applied) and any(unmoved[variable_key(one)][part] for one in own) for part in (0, 1)
                    )
                    # A gradient that is 0 at each step is no fault where small changes make no difference either.
                    if self._depends(own, SMALL_CHANGE if had else 1.0):
                        entries = sum(int(np.prod(one.shape)) for one in own)
                        found.append(StillLayer(layer.name, entries, NO_GRADIENT if asked or had else NOT_UPDATED))
                found += self._cut_off() if not found else []
        except Exception:
            logger.debug("The still weights of %r could not be told.", self._model, exc_info=True)
        return tuple(found)

    def _cut_off(self) -> list[StillLayer]:
        """Return the layers that change the answers while no slope of these reaches them, nor the inputs.

        Another term of the loss may move them all the same. Where slopes reach the inputs, as where an estimate passes
        them straight through, a layer beside their way is left out on purpose.
        """
        x = keras.tree.map_structure(tf.convert_to_tensor, self._x)
        inputs = [one for one in keras.tree.flatten(x) if one.dtype.is_floating]
        watched = self._model.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            answers = [one for one in keras.tree.flatten(self._model(x, training=False)) if one.dtype.is_floating]
        of_inputs, of_weights = tape.gradient(answers, (inputs, [variable.value for variable in watched]))
        if not inputs or any(slope is not None for slope in of_inputs):
            return []
        cut = {id(one) for one, slope in zip(watched, of_weights, strict=True) if slope is None}
        found = []
        for layer in sublayers(self._model):
            own = [one for one in own_variables(layer) if id(one) in cut]
            if any(len(one.shape) >= 2 for one in own) and self._depends(own, 1.0):
                found.append(StillLayer(layer.name, sum(int(np.prod(one.shape)) for one in own), CUT_OFF))
        return found

    def _answers(self) -> list[np.ndarray]:
        return [np.asarray(one) for one in keras.tree.flatten(self._model(self._x, training=False))]

    def _depends(self, variables: Sequence[Any], change: float) -> bool:
        """Return whether the answers change with weights, changed by so much of their size."""
        before, values, random = self._answers(), [np.array(one) for one in variables], np.random.default_rng(0)
        for variable, value in zip(variables, values, strict=True):
            size = change * np.sqrt(np.mean(np.square(value, dtype=np.float64)))
            variable.assign(value + (size * random.normal(size=value.shape)).astype(value.dtype))
        after = self._answers()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return any(not np.allclose(one, other, rtol=SAME_ANSWER) for one, other in zip(before, after, strict=True))
