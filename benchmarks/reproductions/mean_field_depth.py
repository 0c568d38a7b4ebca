"""A tanh net trains down to a depth of about six times its correlation length, which mean-field theory predicts."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq

from benchmarks.record import Figure, Record, save_plot
from benchmarks.reproductions.runs import accuracies, digits, train
from gradrecipes.core.signal_theory import derivative_moment, second_moment

BIAS_VARIANCE = 0.05
VARIANCES = (0.9, 1.2, 1.4, 2.5, 3.0, 4.0)  # of a weight, times fan-in; order and chaos meet at 1.76
DEPTHS = (8, 12, 18, 27, 40, 60, 90)
RATES = (0.003, 0.03)
WIDTH, STEPS, SEEDS, TRAINED = 64, 20 * 22, 3, 0.5


def fixed_variance(variance: float) -> float:
    """Return q*, the variance of the inputs of a deep layer."""
    return brentq(lambda q: variance * second_moment("tanh", q) + BIAS_VARIANCE - q, 1e-6, 50.0)


def correlation_length(variance: float) -> float:
    """Return xi: over so many layers the correlation of two inputs gets nearer to its fixed point by a factor of e."""
    q = fixed_variance(variance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    one, other = np.meshgrid(nodes, nodes)
    both = weights[:, None] * weights

    def mean(function, c):
        second = c * one + np.sqrt(max(0.0, 1 - c * c)) * other
        return float((both * function(np.sqrt(q) * one) * function(np.sqrt(q) * second)).sum())

    def gap(c):
        return (variance * mean(np.tanh, c) + BIAS_VARIANCE) / q - c

    slope = variance * derivative_moment("tanh", q)  # at a correlation of 1
    if slope > 1:  # chaos: the fixed point lies below 1
        slope = variance * mean(lambda h: 1 / np.cosh(h) ** 2, brentq(gap, 0.0, 1 - 1e-3))
    return -1 / np.log(slope)


def start(depth: int, variance: float, seed: int) -> list[np.ndarray]:
    random, weights = np.random.default_rng(seed), []
    for fan_in in (64, *[WIDTH] * (depth - 1)):
        weights.append(random.normal(scale=(variance / fan_in) ** 0.5, size=(fan_in, WIDTH)).astype(np.float32))
        weights.append(random.normal(scale=BIAS_VARIANCE**0.5, size=WIDTH).astype(np.float32))
    weights.append(random.normal(scale=WIDTH**-0.5, size=(WIDTH, 10)).astype(np.float32))
    return [*weights, np.zeros(10, np.float32)]


def measure() -> Record:
    x, y, _, _ = digits()
    found = np.zeros((len(DEPTHS), len(VARIANCES)))
    for row, depth in enumerate(DEPTHS):
        hidden = [keras.layers.Dense(WIDTH, "tanh", kernel_initializer="zeros") for _ in range(depth)]
        model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
        runs = [(v, rate, seed) for v in VARIANCES for rate in RATES for seed in range(SEEDS)]
        starts = [start(depth, variance, seed) for variance, _, seed in runs]
        weights = train(model, starts, [rate for _, rate, _ in runs], (x, y), steps=STEPS)
        right = np.nan_to_num(accuracies(model, weights, x, y)).reshape(len(VARIANCES), len(RATES), SEEDS)
        found[row] = right.mean(2).max(1)
        print(depth, found[row].round(2), flush=True)
    lengths = np.array([correlation_length(variance) for variance in VARIANCES])
    figures = []
    for column, variance in enumerate(VARIANCES):
        trained = found[:, column] >= TRAINED
        last = len(DEPTHS) - 1 if trained.all() else int(np.argmin(trained)) - 1
        low = DEPTHS[last] if last >= 0 else 0
        high = DEPTHS[last + 1] if last + 1 < len(DEPTHS) else np.inf
        claim = f"deepest net that trains over xi, variance {variance:g}/fan_in (xi = {lengths[column]:.1f})"
        middle = low if np.isinf(high) else (low * high) ** 0.5
        ends = [float(value / lengths[column]) for value in (low, middle, min(high, 1e30))]
        figures.append(Figure(claim, ends[1], ends[0], ends[2], expected=6.0, n=SEEDS))
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    image = axes.pcolormesh(range(len(VARIANCES)), range(len(DEPTHS)), found, shading="nearest", vmin=0, vmax=1)
    axes.plot(range(len(VARIANCES)), np.interp(np.log(6 * lengths), np.log(DEPTHS), range(len(DEPTHS))), "w.-")
    axes.set_xticks(range(len(VARIANCES)), [f"{variance:g}" for variance in VARIANCES])
    axes.set_yticks(range(len(DEPTHS)), [str(depth) for depth in DEPTHS])
    axes.set(xlabel="variance of the weights, times fan-in", ylabel="layers (white: 6 xi)")
    drawing.colorbar(image, label="accuracy in training")
    return Record(
        "mean_field_depth",
        "How deep a tanh net may be: six correlation lengths",
        "make bench ONLY=mean_field_depth",
        figures,
        source="Schoenholz et al. 2017, arXiv 1611.01232: trainable down to about 6 xi.",
        setting=f"Digits, standardized; tanh, width {WIDTH}, biases of variance {BIAS_VARIANCE}, SGD, batch 64, "
        f"{STEPS} steps, the better of the rates {RATES}, {SEEDS} seeds; trains: {TRAINED:.0%} of the training data "
        f"right in the mean. Depths {DEPTHS}: the interval goes from the deepest that trains to the next one.",
        findings=[
            f"{figure.claim}: {'more' if figure.low > 6 else 'less'} than predicted; why was not examined."
            for figure in figures
            if not figure.reproduced
        ],
        plot=save_plot(drawing, "mean_field_depth"),
    )
