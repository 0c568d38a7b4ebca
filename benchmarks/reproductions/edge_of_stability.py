"""Full-batch gradient descent sharpens the loss until learning rate times curvature is 2, and stays there."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import gradrecipes as gr
from benchmarks.record import Record, mean_figure, save_plot, share_figure
from benchmarks.reproductions.runs import digits

RATE, STEPS, EVERY, SEEDS, SAMPLES = 0.3, 6000, 250, 5, 500
LATE, EDGE = 4000, (0.98, 1.05)  # steps from which a mean is taken; ratios that count as 1


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
    x, y, _, _ = digits()
    raw, labels = load_digits(return_X_y=True)
    scaled = {
        "pixels from 0 to 1": ((raw[:SAMPLES] / 16).astype(np.float32), labels[:SAMPLES]),
        "standardized": (x[:SAMPLES], y[:SAMPLES]),
    }
    drawing, axes = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True)
    steps, figures, findings = EVERY * np.arange(1, STEPS // EVERY + 1), [], []
    for ax, (name, (inputs, classes)) in zip(axes, scaled.items(), strict=True):
        targets = np.eye(10, dtype=np.float32)[classes]
        found = np.array([ratios(seed, inputs, targets) for seed in range(SEEDS)])
        late = found[:, steps >= LATE].mean(1)
        there = (late >= EDGE[0]) & (late <= EDGE[1])
        claim = f"rate times sharpness over 2, steps {LATE} to {STEPS}, {name}"
        figures.append(share_figure(f"runs at 1: {claim}", int(there.sum()), SEEDS, expected=1.0))
        figures.append(mean_figure(claim, late, expected=EDGE))
        values = ", ".join(f"{value:.3f}" for value in sorted(late))
        findings.append(f"By run, {name}: {values}.")
        ax.plot(steps, found.T)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(xlabel="step of gradient descent", title=name)
    axes[0].set_ylabel("learning rate · sharpness / 2")
    return Record(
        "edge_of_stability",
        "The edge of stability",
        "make bench ONLY=edge_of_stability",
        figures,
        source="Cohen et al. 2021, arXiv 2103.00065; 1.00 in a simulation of this net. The range holds its "
        "oscillation.",
        setting=f"tanh 64-40-40-10, mean squared error, {SAMPLES} digits as one batch, rate {RATE}, {STEPS} steps, "
        f"{SEEDS} seeds; sharpness by gr.probes.sharpness every {EVERY} steps. The source does not say how its inputs "
        "were scaled: both usual ways are shown.",
        findings=findings,
        plot=save_plot(drawing, "edge_of_stability"),
    )
