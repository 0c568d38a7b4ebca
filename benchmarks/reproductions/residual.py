"""Residual nets without normalization: He blocks blow up with depth, Fixup and ReZero do not."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Figure, Record, mean_figure, save_plot
from benchmarks.reproductions.depth_initialization import best
from benchmarks.reproductions.runs import accuracies, digits, draw, train

SEEDS, STEPS = 3, 20 * 22
RATES = (0.01, 0.03, 0.1)
EXPECTED = {  # blocks: test accuracy of (He, Fixup, ReZero); None: not a number
    20: (0.293, 0.980, 0.969),
    50: (None, 0.980, 0.969),
    100: (None, 0.979, 0.976),
}


class Plain(keras.layers.Layer):
    """A residual block y = x + F(x), two He layers, nothing else."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(64, "relu", kernel_initializer="he_normal")
        self.second = keras.layers.Dense(64, kernel_initializer="he_normal")

    def build(self, shape):
        """Build both layers."""
        self.first.build(shape)
        self.second.build(shape)

    def call(self, inputs):
        """Return x + F(x)."""
        return inputs + self.second(self.first(inputs))


def dense(**arguments) -> keras.layers.Layer:
    return keras.layers.Dense(64, **arguments)


BLOCKS = {
    "He": lambda blocks: Plain(),
    "Fixup": lambda blocks: gr.layers.FixupResidual([dense(use_bias=False), dense(use_bias=False)], blocks=blocks),
    "ReZero": lambda blocks: gr.layers.ReZeroResidual(
        [dense(activation="relu", kernel_initializer="he_normal"), dense(kernel_initializer="he_normal")]
    ),
}


def build(blocks: int, kind: str) -> keras.Model:
    h = inputs = keras.Input((64,))
    for _ in range(blocks):
        h = BLOCKS[kind](blocks)(h)
    head = {"kernel_initializer": "zeros"} if kind == "Fixup" else {}
    return keras.Model(inputs, keras.layers.Dense(10, **head)(h))


def measure() -> Record:
    x, y, x_test, y_test = digits()
    figures, findings, shown = [], [], {}
    for blocks, row in EXPECTED.items():
        for kind, expected in zip(BLOCKS, row, strict=True):
            model = build(blocks, kind)
            starts = [draw(lambda: build(blocks, kind), seed) for seed in range(SEEDS)]  # noqa: B023
            runs = [(start, rate) for start in starts for rate in RATES]
            weights = train(model, [run[0] for run in runs], [run[1] for run in runs], (x, y), steps=STEPS)
            found = accuracies(model, weights, x_test, y_test).reshape(SEEDS, len(RATES))
            place, accuracy = best(found)
            shown[blocks, kind] = np.nan_to_num(found).mean(0).max()
            claim = f"{blocks} blocks, {kind}"
            if expected is None:
                dead = float(np.isnan(found).all())
                figures.append(
                    Figure(f"{claim}: NaN at every rate and seed", dead, dead, dead, expected=1, n=found.size)
                )
            else:
                figures.append(
                    mean_figure(
                        f"{claim}: test accuracy at the best rate",
                        accuracy,
                        resolution=1 / len(y_test),
                        expected=expected,
                    )
                )
                findings.append(f"{claim}: best rate {RATES[place]:g}.")
            print(figures[-1], flush=True)
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    for kind in BLOCKS:
        axes.plot(list(EXPECTED), [shown[blocks, kind] for blocks in EXPECTED], "o-", label=kind)
    axes.set(xlabel="blocks of two layers", ylabel="test accuracy (0: NaN)")
    axes.legend()
    return Record(
        "residual",
        "Residual nets without normalization",
        "make bench ONLY=residual",
        figures,
        source="Fixup: arXiv 1901.09321; ReZero: arXiv 2003.04887; figures of a simulation in numpy.",
        setting=f"Digits, standardized; blocks of two Dense(64), ReLU between; SGD, batch 64, 20 epochs, best of the "
        f"rates {RATES}, {SEEDS} seeds.",
        findings=findings,
        plot=save_plot(drawing, "residual"),
    )
