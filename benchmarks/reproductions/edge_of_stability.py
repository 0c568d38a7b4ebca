"""Full-batch gradient descent sharpens the loss until learning rate times curvature is 2, and stays there."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import gradrecipes as gr
from benchmarks.record import Record, mean_figure, save_plot
from benchmarks.reproductions.runs import digits

RATE, STEPS, EVERY, SEEDS, SAMPLES = 0.3, 18000, 500, 5, 500
SPANS = ((4000, 6000), (16000, 18000))  # steps over which a mean is taken


def ratios(seed: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the learning rate times the largest eigenvalue of the Hessian over 2, every EVERY steps."""
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(40, "tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    model.compile(keras.optimizers.SGD(RATE), keras.losses.MeanSquaredError())
    batch, targets = tf.constant(x), tf.constant(y)

    @tf.function(jit_compile=True)
    def descend():
        for _ in tf.range(EVERY):
            with tf.GradientTape() as tape:
                loss = model.loss(targets, model(batch, training=True))
            weights = model.trainable_variables
            for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
                weight.assign_sub(RATE * gradient)
        return loss

    found = []
    for _ in range(STEPS // EVERY):
        descend()
        found.append(RATE * gr.probes.sharpness(model, x, y, batch_size=SAMPLES).lambda_max / 2)
    return np.array(found)


def measure() -> Record:
    x, labels, _, _ = digits()
    x, y = x[:SAMPLES], np.eye(10, dtype=np.float32)[labels[:SAMPLES]]
    found = np.array([ratios(seed, x, y) for seed in range(SEEDS)])
    steps = EVERY * np.arange(1, STEPS // EVERY + 1)
    means = [found[:, (steps >= first) & (steps <= last)].mean(1) for first, last in SPANS]
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    axes.plot(steps, found.T)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="step of gradient descent", ylabel="learning rate · sharpness / 2")
    return Record(
        "edge_of_stability",
        "The edge of stability",
        "make bench ONLY=edge_of_stability",
        [
            *(
                mean_figure(f"rate times sharpness over 2, steps {first} to {last}", mean, expected=(0.98, 1.05))
                for (first, last), mean in zip(SPANS, means, strict=True)
            ),
            mean_figure(f"the same at step {EVERY}", found[:, 0], expected=None),
        ],
        source="Cohen et al. 2021, arXiv 2103.00065; 1.00 in a simulation of this net. The range holds its "
        "oscillation.",
        setting=f"tanh 64-40-40-10, mean squared error, {SAMPLES} digits as one batch, "
        f"rate {RATE}, "
        f"{STEPS} steps, {SEEDS} seeds; sharpness by gr.probes.sharpness every {EVERY} steps.",
        findings=[
            f"Runs within 0.98 to 1.05 at steps {first} to {last}: {int(((mean >= 0.98) & (mean <= 1.05)).sum())} "
            f"of {SEEDS}."
            for (first, last), mean in zip(SPANS, means, strict=True)
        ],
        plot=save_plot(drawing, "edge_of_stability"),
    )
