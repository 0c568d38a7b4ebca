"""Random numbers that a step is traced with are told from those that it draws anew."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr

ROWS, COLUMNS, BATCH = 256, 8, 32
NUMBERS = np.random.default_rng(0)
SHAPE = (BATCH, COLUMNS)


class Noisy(keras.layers.Layer):
    """Add what a function draws to each sample."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + self.draw(self)


def by_numpy_function(layer):
    drawn = tf.numpy_function(lambda: np.random.normal(size=SHAPE).astype("float32"), [], tf.float32)
    return tf.ensure_shape(drawn, SHAPE)


@pytest.mark.parametrize(
    ("draw", "source"),
    [
        (lambda layer: np.random.normal(size=SHAPE), "np.random"),
        (lambda layer: NUMBERS.normal(size=SHAPE), "Python"),
        (lambda layer: random.random() + tf.random.normal(SHAPE), "Python's `random`"),
        (lambda layer: keras.random.normal(SHAPE, seed=1), "same seed"),
        (lambda layer: keras.random.normal(SHAPE, seed=layer.seed), None),
        (lambda layer: keras.random.normal(SHAPE), None),
        (lambda layer: tf.random.normal(SHAPE), None),
        (lambda layer: keras.random.normal((1, COLUMNS), seed=1), None),  # the same for all samples, on purpose
        (by_numpy_function, None),
    ],
)
def test_numbers_of_the_trace_are_told_from_those_of_each_step(draw, source):
    x = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((COLUMNS,)), keras.layers.Dense(COLUMNS)])
    noisy = keras.Sequential([keras.Input((COLUMNS,), batch_size=BATCH), Noisy(draw), *model.layers])
    noisy.compile("adam", "mse")
    found = gr.diagnose(noisy, x, x[:, ::-1], batch_size=BATCH, steps=16)
    read = found.trace.probes.loss.drawn_once
    assert (None if read is None else source in read.source) == (None if source is None else True)
    assert ("frozen_random_numbers" in [one.code for one in found.findings]) == (source is not None)
