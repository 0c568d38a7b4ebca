"""How deep a plain ReLU net may be under three initializations, on the digits."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Figure, Record, mean_figure, save_plot
from benchmarks.reproductions.runs import accuracies, digits, draw, train

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


def best(found: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the rate of the highest mean, and the accuracies there; a run that diverged counts as 0."""
    means = np.nan_to_num(found).mean(0)
    place = int(means.argmax())
    return place, found[:, place]


def measure() -> Record:
    x, y, x_test, y_test = digits()
    figures, findings, shown = [], [], {}
    for depth, row in EXPECTED.items():
        model = build(depth, "He")
        for name, expected in zip(INITIALIZERS, row, strict=True):
            starts = [draw(lambda: build(depth, name), seed) for seed in range(SEEDS)]  # noqa: B023
            runs = [(start, rate) for start in starts for rate in RATES]
            weights = train(model, [run[0] for run in runs], [run[1] for run in runs], (x, y), steps=STEPS)
            found = accuracies(model, weights, x_test, y_test).reshape(SEEDS, len(RATES))
            place, accuracy = best(found)
            shown[depth, name] = found
            claim = f"{depth} layers, {name}"
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
