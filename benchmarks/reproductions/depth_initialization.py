"""How deep a plain ReLU net may be under three initializations, on the digits."""

from __future__ import annotations

import functools

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Record, save_plot
from benchmarks.reproductions.runs import at_each_rate, figure_at_best

SEEDS, STEPS = 3, 20 * 22
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
INITIALIZERS = {
    "Glorot": lambda: keras.initializers.GlorotNormal(),
    "He": lambda: keras.initializers.HeNormal(),
    "variance 4/fan_in": lambda: gr.initializers.ScaledInitializer(2.0),
}
EXPECTED = {  # layers: by initializer, the test accuracy; None: not a number
    10: (0.914, 0.969, 0.765),
    30: (0.083, 0.578, None),
    50: (0.083, 0.297, None),
}


def build(depth: int, initializer: str) -> keras.Model:
    hidden = [keras.layers.Dense(64, "relu", kernel_initializer=INITIALIZERS[initializer]()) for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


def measure() -> Record:
    figures, findings, shown = [], [], {}
    for depth, row in EXPECTED.items():
        for name, expected in zip(INITIALIZERS, row, strict=True):
            found = at_each_rate(functools.partial(build, depth, name), RATES, seeds=SEEDS, steps=STEPS)
            shown[depth, name] = found
            figure, best = figure_at_best(f"{depth} layers, {name}", found, RATES, expected=expected)
            figures.append(figure)
            findings += best
    drawing, axes = plt.subplots(1, len(EXPECTED), figsize=(9, 3.2), sharey=True)
    for ax, depth in zip(axes, EXPECTED, strict=True):
        for name in INITIALIZERS:
            ax.semilogx(RATES, np.nan_to_num(shown[depth, name]).mean(0), "o-", label=name)
        ax.set(title=f"{depth} layers", xlabel="learning rate")
    axes[0].set_ylabel("test accuracy (0: NaN)")
    axes[0].legend(fontsize=7)
    return Record(
        "depth_initialization",
        "Depth and initialization of plain ReLU nets",
        "make bench ONLY=depth_initialization",
        figures,
        source="A simulation in numpy of the same setting; theory: He et al. 2015, arXiv 1502.01852.",
        setting=f"Digits, standardized; width 64, ReLU, SGD, batch 64, 20 epochs, best of the rates {RATES}, "
        f"{SEEDS} seeds.",
        findings=[
            *findings,
            "The rates of the source are not known, and neither is its split: ten layers come out better here "
            "than there. "
            "The order of the initializations is the same at every depth.",
        ],
        plot=save_plot(drawing, "depth_initialization"),
    )
