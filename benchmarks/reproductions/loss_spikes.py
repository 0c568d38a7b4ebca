"""How many loss spikes a small transformer has at too high a rate, under each way of clipping and under the guard."""

from __future__ import annotations

import argparse as one
import ast as other
import inspect
import typing as third

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr
from benchmarks.record import Figure, Record, mean_figure, save_plot

CONTEXT, WIDTH, BLOCKS, BATCH, STEPS, SEEDS, RATE = 32, 32, 2, 16, 800, 3, 0.03
WINDOW, SIGMAS = 128, 7.0


def alone(clipping) -> list:
    """Return a guard that clips, and skips nothing but what is not finite."""
    return [gr.GradientGuard(clipping=clipping, sigmas=None, snapshot_every=None)]


ARMS = {
    "no clip": lambda: [],
    "global norm 1": lambda: alone(gr.clipping.by_global_norm(1.0)),
    "percentile 90": lambda: alone(gr.clipping.by_percentile(90.0)),
    "z-score 2.5": lambda: alone(gr.clipping.by_z_score(2.5)),
    "guard": lambda: [gr.GradientGuard()],
}


def spike_score(values: np.ndarray) -> np.ndarray:
    """Return where a value lies at least SIGMAS deviations above the mean of the WINDOW values before it."""
    marks = np.zeros(len(values), bool)
    for step in range(WINDOW, len(values)):
        past = values[step - WINDOW : step]
        past = past[np.isfinite(past)]
        marks[step] = not np.isfinite(values[step]) or values[step] >= past.mean() + SIGMAS * past.std()
    return marks


def text() -> np.ndarray:
    """Return source code of the standard library, uint8; what is not ASCII is left out."""
    code = "".join(inspect.getsource(module) for module in (one, other, third))
    return np.frombuffer(code.encode("ascii", "ignore"), np.uint8)


def build() -> keras.Model:
    inputs = keras.Input((CONTEXT,), dtype="int32")
    h = keras.layers.Embedding(128, WIDTH)(inputs)
    h = h + keras.layers.Embedding(CONTEXT, WIDTH)(keras.ops.arange(CONTEXT))
    for _ in range(BLOCKS):
        inner = keras.layers.LayerNormalization()(h)
        h = h + keras.layers.MultiHeadAttention(4, WIDTH // 4)(inner, inner, use_causal_mask=True)
        inner = keras.layers.Dense(4 * WIDTH, "gelu")(keras.layers.LayerNormalization()(h))
        h = h + keras.layers.Dense(WIDTH)(inner)
    model = keras.Model(inputs, keras.layers.Dense(128)(keras.layers.LayerNormalization()(h)))
    model.compile(keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def compare(scores: list[Figure]) -> list[str]:
    """Say of each way whether its spike score differs from that of the first one by more than both intervals."""
    plain, *others = scores
    found = []
    for figure in others:
        apart = figure.high < plain.low or figure.low > plain.high
        found.append(f"{figure.claim}: {'differs' if apart else 'does not differ'} from no clip beyond the intervals.")
    return found


def measure() -> Record:
    characters = text().astype(np.int32)
    scores, ends, curves = {}, {}, {}
    for name, arm in ARMS.items():
        scores[name], ends[name] = [], []
        for seed in range(SEEDS):
            keras.backend.clear_session()
            keras.utils.set_random_seed(seed)
            begins = np.random.default_rng(seed).integers(len(characters) - CONTEXT - 1, size=STEPS * BATCH)
            x = characters[begins[:, None] + np.arange(CONTEXT)]
            y = characters[begins[:, None] + np.arange(1, CONTEXT + 1)]
            monitor = gr.GradientMonitor()
            build().fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*arm(), monitor])
            loss = np.asarray(monitor.trace.loss, float)
            norm = np.asarray(monitor.trace.gradient_norm, float)
            marks = spike_score(loss) | spike_score(norm)
            scores[name].append(100 * marks[WINDOW:].mean())
            ends[name].append(loss[-50:].mean())
            curves[name] = loss
            print(name, seed, scores[name][-1], ends[name][-1], flush=True)
    figures = []
    for name in ARMS:
        figures.append(mean_figure(f"spike score, % of steps, {name}", scores[name]))
        figures.append(mean_figure(f"loss of the last 50 steps, {name}", ends[name]))
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    for name, loss in curves.items():
        axes.plot(loss, linewidth=0.7, label=name)
    axes.set(xlabel="step", ylabel="loss", ylim=(1.5, 6))
    axes.legend()
    return Record(
        "loss_spikes",
        "Loss spikes of a small transformer",
        "make bench ONLY=loss_spikes",
        figures,
        source="The measure is OLMo's spike score, arXiv 2501.00656: the share of steps whose loss or gradient "
        "norm lies "
        f"at least {SIGMAS:g} deviations above the mean of the last {WINDOW}. No figure of a source applies to "
        "this net.",
        setting=f"Characters of three modules of the standard library; {BLOCKS} pre-norm blocks of width {WIDTH}, "
        "context "
        f"{CONTEXT}, batch {BATCH}, Adam at {RATE}, {STEPS} steps, {SEEDS} seeds. Norms are those before "
        "clipping, and a "
        "step that the guard skips counts.",
        findings=compare(figures[::2]),
        plot=save_plot(drawing, "loss_spikes"),
    )
