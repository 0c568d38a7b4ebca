"""The textbook example: one neuron a layer, every weight 2.34, and a gradient of 2.34^19 at the first."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.gradients.clipping import by_global_norm
from gradrecipes.training.step.recipe_model import RecipeModel

WEIGHT = 2.34


@dataclass(frozen=True)
class ChainRun:
    """What a chain of neurons does to the gradient of its first weight.

    Attributes:
        layers: Neurons, one a layer.
        predicted: ∂y/∂w_1 = 2.34^(layers-1), by theory.
        measured: The same, as the monitor reads it in the first step of `fit`.
        clipped_update: L2 norm of that step's update at a learning rate of 1, clipped to a norm of 1.
    """

    layers: int
    predicted: float
    measured: float
    clipped_update: float


def run_chain(layers: int) -> ChainRun:
    """Train a chain for one step on the input 1, with the output itself as the loss, and read its gradient."""
    inputs = keras.Input((1,))
    output = inputs
    for _ in range(layers):
        weight = keras.initializers.Constant(WEIGHT)
        output = keras.layers.Dense(1, activation="relu", use_bias=False, kernel_initializer=weight)(output)
    model = RecipeModel(inputs, output, clipping=by_global_norm(1.0))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=lambda _, y: y)
    before = np.array(model.get_weights()).ravel()
    monitor = GradientMonitor()
    model.fit(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), verbose=0, callbacks=[monitor])
    update = np.array(model.get_weights()).ravel() - before
    return ChainRun(
        layers,
        predicted=WEIGHT ** (layers - 1),
        measured=float(monitor.trace.layer_gradient_norm[0, 0]),
        clipped_update=float(np.linalg.norm(update.astype(np.float64))),
    )
