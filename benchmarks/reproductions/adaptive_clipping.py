"""In a net without normalization, adaptive clipping (AGC) keeps learning rates usable that are too high without it."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Figure, Record, save_plot, share_figure
from benchmarks.reproductions.runs import accuracies, digits, draw, train

BLOCKS, SEEDS, STEPS, MOMENTUM, REACHED = 10, 20, 10 * 22, 0.9, 0.9
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def build() -> keras.Model:
    h = inputs = keras.Input((64,))
    for _ in range(BLOCKS):
        inner = keras.layers.Dense(64, "relu", kernel_initializer="he_normal")(h)
        h = keras.layers.add([h, keras.layers.Dense(64, kernel_initializer="he_normal")(inner)])
        h = keras.layers.Rescaling(0.5**0.5)(h)  # keeps the variance, as normalizer-free nets do
    return keras.Model(inputs, keras.layers.Dense(10)(h))


def adaptively(max_ratio: float):
    def clip(gradients, weights):
        """Clip all but the head, as the paper does."""
        return [*gr.clipping.clip_adaptively(gradients[:-2], weights[:-2], max_ratio=max_ratio), *gradients[-2:]]

    return clip


CLIPS = {"no clip": None, "AGC 0.01": adaptively(0.01), "AGC 0.1": adaptively(0.1)}


def measure() -> Record:
    x, y, x_test, y_test = digits()
    model, figures, solved = build(), [], {}
    starts = [draw(build, seed) for seed in range(SEEDS)]
    for name, clip in CLIPS.items():
        runs = [(start, rate) for rate in RATES for start in starts]
        options = {"steps": STEPS, "clip": clip, "momentum": MOMENTUM}
        weights = train(model, [start for start, _ in runs], [rate for _, rate in runs], (x, y), **options)
        right = np.nan_to_num(accuracies(model, weights, x_test, y_test)).reshape(len(RATES), SEEDS)
        solved[name] = (right >= REACHED).sum(1)
        print(name, solved[name], flush=True)
    for place, rate in enumerate(RATES):
        for name in CLIPS:
            claim = f"reaches {REACHED:.0%}, rate {rate:g}, {name}"
            figures.append(share_figure(claim, int(solved[name][place]), SEEDS))
    highest = {  # the highest rate at which nine runs of ten succeed
        name: max((rate for rate, count in zip(RATES, counts, strict=True) if count >= 0.9 * SEEDS), default=None)
        for name, counts in solved.items()
    }
    for name in list(CLIPS)[1:]:
        ours, plain = highest[name], highest["no clip"]
        ratio = None if ours is None or plain is None else ours / plain
        claim = f"highest rate at which 90% of the runs succeed, {name} over no clip"
        figures.append(Figure(claim, ratio, expected=(1.01, 1e30), n=SEEDS))
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    for name, counts in solved.items():
        axes.semilogx(RATES, counts / SEEDS, "o-", label=name)
    axes.set(xlabel="learning rate", ylabel=f"runs that reach {REACHED:.0%} in the test")
    axes.legend()
    return Record(
        "adaptive_clipping",
        "Adaptive clipping at high rates, without normalization",
        "make bench ONLY=adaptive_clipping",
        figures,
        source="Brock et al. 2021, arXiv 2102.06171: AGC makes high rates usable in nets without normalization. "
        "The paper gives no shares of runs at such rates; what is expected is that the usable rates are higher.",
        setting=f"Digits, standardized; {BLOCKS} residual blocks of two He Dense(64), divided by the root of 2; "
        "SGD with "
        f"momentum {MOMENTUM}, batch 64, {STEPS} steps, {SEEDS} seeds; the head is not clipped.",
        plot=save_plot(drawing, "adaptive_clipping"),
    )
