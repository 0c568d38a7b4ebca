"""A plain ReLU net with BatchNorm explodes at its start, by 1.2 a layer; LayerNorm and RMSNorm do not."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import linregress

from benchmarks.record import Record, mean_figure, save_plot
from benchmarks.reproductions.runs import digits
from gradrecipes.core.signal_theory import batch_normalized_factor
from gradrecipes.probes.signal import signal

LAYERS, WIDTH, BATCH, SEEDS = 50, 512, 128, 10
NORMALIZATIONS = {
    "BatchNormalization": keras.layers.BatchNormalization,
    "LayerNormalization": keras.layers.LayerNormalization,
    "RMSNormalization": getattr(keras.layers, "RMSNormalization", None),
}
EXPECTED = {
    "BatchNormalization": (1.195, 1.2112),
    "LayerNormalization": (0.985, 1.005),
    "RMSNormalization": (0.985, 1.005),
}


def build(normalization) -> keras.Model:
    h = inputs = keras.Input((64,))
    for number in range(LAYERS):
        h = keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="he_normal", name=f"hidden_{number}")(h)
        h = keras.layers.Activation("relu")(normalization()(h))
    model = keras.Model(inputs, keras.layers.Dense(10)(h))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def output_gradients(model: keras.Model, batch) -> np.ndarray:
    """Return the norm of the loss's gradient at the output of every hidden Dense layer, float `[layers]`."""
    found = {layer.name: layer for layer in signal(model, batch).layers}
    return np.array([found[f"hidden_{number}"].output_gradient_norm for number in range(LAYERS)])


def measure() -> Record:
    x, y, _, _ = digits()
    batch = (x[:BATCH], y[:BATCH])
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    figures = []
    for name, kind in NORMALIZATIONS.items():
        if kind is None:
            continue
        model, growths = build(kind), []
        for seed in range(SEEDS):
            random = np.random.default_rng(seed)
            for layer in model.layers:
                if isinstance(layer, keras.layers.Dense):
                    kernel = layer.kernel
                    kernel.assign(random.normal(scale=(2 / kernel.shape[0]) ** 0.5, size=kernel.shape))
            norms = output_gradients(model, batch)
            # The last layers are still under the influence of the head.
            slope = linregress(np.arange(LAYERS - 5), np.log(norms[:-5])).slope
            growths.append(np.exp(-slope))
        figures.append(mean_figure(f"growth of the gradient a layer, {name}", growths, expected=EXPECTED[name]))
        axes.semilogy(norms / norms[-1], label=name)
    axes.set(xlabel="layer", ylabel="gradient at the layer's output,\nover that at the last")
    axes.legend()
    theory = batch_normalized_factor("relu")
    return Record(
        "batch_normalization",
        "BatchNorm explodes in a plain net",
        "make bench ONLY=batch_normalization",
        figures,
        source="Yang et al. 2019, arXiv 1902.08129; 1.195 and 0.99 to 1.00 from a simulation in numpy at the "
        "same sizes.",
        setting=f"{LAYERS} layers of Dense({WIDTH}), normalization, ReLU; batch {BATCH} of the digits, "
        f"{SEEDS} initializations; exp of the slope of ln |gradient at the layer's output| over the layers.",
        findings=[f"Theory for infinite width and batch: {theory:.4f} a layer with BatchNorm."],
        plot=save_plot(drawing, "batch_normalization"),
    )
