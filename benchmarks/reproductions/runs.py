"""Train one Keras model from many initial weights and at many learning rates at once, each apart from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from benchmarks.record import Figure, mean_figure

Weights = list[np.ndarray]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return 1,437 standardized samples for the training and 360 for the test, the same every time."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = ((x - x.mean()) / x.std()).astype(np.float32)[order]
    return x[:1437], y[order][:1437], x[1437:], y[order][1437:]


def draw(build: Callable[[], keras.Model], seed: int) -> Weights:
    """Return the initial weights of a model that is built with a seed."""
    keras.utils.set_random_seed(seed)
    return [np.array(weight) for weight in build().get_weights()]


def train(
    model: keras.Model,
    starts: list[Weights],
    rates: list[float],
    data: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    batch_size: int = 64,
    clip: Callable[[list[tf.Tensor], list[tf.Tensor]], list[tf.Tensor]] | None = None,
    momentum: float = 0.0,
    seed: int = 0,
) -> list[tf.Tensor]:
    """Train by SGD with cross-entropy, and return the weights, each `[runs, *shape]`.

    A run is a pair of initial weights and a rate. Its arithmetic is that of `model.fit` with Keras' SGD: the forward
    pass is the model's own, the gradients are clipped by `clip(gradients, weights)`, and what is not a finite number in
    one run reaches no other. All runs see the same batches; what is left of an epoch is dropped.
    """
    x, y = tf.constant(data[0]), tf.constant(data[1])
    epoch = len(data[0]) // batch_size
    order = np.random.default_rng(seed)
    plan = np.concatenate([
        order.permutation(len(data[0]))[: epoch * batch_size].reshape(epoch, batch_size)
        for _ in range(-(-steps // epoch))
    ])[:steps]  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = tf.constant(rates, tf.float32)

    def update(weights, velocity, rate, batch, labels):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(labels, model.stateless_call(weights, [], batch, training=True)[0])
        gradients = tape.gradient(value, weights)
        if clip is not None:
            gradients = clip(gradients, weights)
        velocity = [momentum * v - rate * g for v, g in zip(velocity, gradients, strict=True)]
        return [w + v for w, v in zip(weights, velocity, strict=True)], velocity

    @tf.function(autograph=False, reduce_retracing=True)
    def several(weights, velocity, indices):
        def one(number, weights, velocity):
            batch, labels = tf.gather(x, indices[number]), tf.gather(y, indices[number])
            new = tf.vectorized_map(lambda run: update(*run, batch, labels), (weights, velocity, rate))
            return number + 1, *new

        return tf.while_loop(
            lambda number, *_: number < tf.shape(indices)[0], one, (0, weights, velocity), parallel_iterations=1
        )[1:]

    weights = [tf.constant(np.stack(parts)) for parts in zip(*starts, strict=True)]
    velocity = [tf.zeros_like(weight) for weight in weights]
    for part in np.array_split(plan, max(1, steps // epoch)):
        weights, velocity = several(weights, velocity, tf.constant(part))
    return weights


def accuracies(model: keras.Model, weights: list[tf.Tensor], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the accuracy of every run, float `[runs]`; NaN where its outputs are not finite."""
    outputs = tf.function(
        lambda: tf.vectorized_map(lambda one: model.stateless_call(one, [], tf.constant(x), training=False)[0], weights)
    )().numpy()
    right = (outputs.argmax(-1) == y).mean(-1)
    return np.where(np.isfinite(outputs).all((1, 2)), right, np.nan)


def at_each_rate(build: Callable[[], keras.Model], rates: Sequence[float], *, seeds: int, steps: int) -> np.ndarray:
    """Train a model on the digits from the weights of each seed, at each rate.

    Returns:
        float `[seeds, rates]`, the accuracy on the test samples; NaN where outputs are not finite.
    """
    x, y, x_test, y_test = digits()
    runs = [(start, rate) for start in (draw(build, seed) for seed in range(seeds)) for rate in rates]
    model = build()
    weights = train(model, [start for start, _ in runs], [rate for _, rate in runs], (x, y), steps=steps)
    return accuracies(model, weights, x_test, y_test).reshape(seeds, len(rates))


def figure_at_best(
    claim: str, found: np.ndarray, rates: Sequence[float], *, expected: float | None
) -> tuple[Figure, list[str]]:
    """Compare the accuracies at the rate of the highest mean with what is expected; a run that diverged counts as 0.

    Args:
        claim: What was trained.
        found: What `at_each_rate` returned.
        rates: The rates.
        expected: The accuracy; None for a net that diverges at every rate.

    Returns:
        The figure, and the best rate in words where the net is expected to train.
    """
    if expected is None:
        dead = float(np.isnan(found).all())
        return Figure(f"{claim}: NaN at every rate and seed", dead, dead, dead, expected=1, n=found.size), []
    place = int(np.nan_to_num(found).mean(0).argmax())
    claimed, resolution = f"{claim}: test accuracy at the best rate", 1 / len(digits()[3])
    figure = mean_figure(claimed, found[:, place], resolution=resolution, expected=expected)
    return figure, [f"{claim}: best rate {rates[place]:g}."]
