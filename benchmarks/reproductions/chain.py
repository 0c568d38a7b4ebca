"""A chain of 20 neurons, every weight 2.34: the gradient of the first weight is 2.34^19."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.record import Figure, Record, save_plot
from gradrecipes.demo import WEIGHT, run_chain

DEPTHS = (2, 5, 10, 20, 30, 40, 50)


def measure() -> Record:
    runs = {depth: run_chain(depth) for depth in DEPTHS}
    figures = []
    for depth in (20, 50):
        predicted, measured = WEIGHT ** (depth - 1), runs[depth].measured
        claim = f"gradient of the first weight, {depth} layers"
        # float32: every layer rounds once forwards and once backwards, by 6e-8 each
        error = 2 * depth * 6e-8
        figures.append(Figure(claim, measured, expected=(predicted * (1 - error), predicted * (1 + error))))
    figures.append(
        Figure(
            "L2 norm of the update under a clip at 1, 50 layers", runs[50].clipped_update, expected=(1 - 1e-5, 1 + 1e-5)
        )
    )
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    axes.semilogy(DEPTHS, [WEIGHT ** (depth - 1) for depth in DEPTHS], label="2.34^(layers-1)")
    axes.semilogy(DEPTHS, [runs[depth].measured for depth in DEPTHS], "o", label="measured in fit")
    axes.set(xlabel="layers", ylabel="gradient of the first weight")
    axes.legend()
    ratio = np.array([runs[depth].measured / runs[depth].predicted for depth in DEPTHS])
    return Record(
        "chain",
        "The chain of 20 neurons",
        "make bench ONLY=chain",
        figures,
        source="The textbook example; the chain rule.",
        setting="One ReLU neuron a layer, no bias, every weight 2.34, input 1, the output as the loss, one step "
        "of fit.",
        findings=[f"Measured over predicted, {len(DEPTHS)} depths: {ratio.min():.6f} to {ratio.max():.6f}."],
        plot=save_plot(drawing, "chain"),
    )
