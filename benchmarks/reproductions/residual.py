"""Residual nets without normalization: He blocks blow up with depth, Fixup and ReZero do not."""

from __future__ import annotations

import functools

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Record, save_plot
from benchmarks.reproductions.runs import at_each_rate, figure_at_best

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
    figures, findings, shown = [], [], {}
    for blocks, row in EXPECTED.items():
        for kind, expected in zip(BLOCKS, row, strict=True):
            found = at_each_rate(functools.partial(build, blocks, kind), RATES, seeds=SEEDS, steps=STEPS)
            shown[blocks, kind] = np.nan_to_num(found).mean(0).max()
            figure, best = figure_at_best(f"{blocks} blocks, {kind}", found, RATES, expected=expected)
            figures.append(figure)
            findings += best
            print(figure, flush=True)
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
