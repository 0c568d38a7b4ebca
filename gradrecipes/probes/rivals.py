"""What the nets of one train step, such as those of a GAN, give each other, seen in one eager step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced
from gradrecipes.core.trace.probes import UnreachedData
from gradrecipes.probes.own_step import run_eagerly
from gradrecipes.training.trial.trial import Trial

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
