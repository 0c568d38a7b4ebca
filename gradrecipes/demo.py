"""The main job on real data: a training that dies, why, and the same training kept alive and repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.core.trace import Trace
from gradrecipes.doctor import diagnose
from gradrecipes.gradients.clipping import by_global_norm
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.rescue.entry import rescue
from gradrecipes.rescue.verdict import Rescue
from gradrecipes.training.step.recipe_model import RecipeModel


class Digits(NamedTuple):
    """Training and test images, float32 `[n, 64]` from 0 to 1, with their labels, int64 `[n]`."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits(*, seed: int = 0) -> Digits:
    """Return the digits, a quarter of them set aside for testing, stratified by label.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "The demo trains on scikit-learn's digits, and scikit-learn is not installed. "
            "Install it with: pip install 'gradrecipes[demo]'"
        ) from error
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    return Digits(x_train, y_train, x_test, y_test)


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


DEPTH, WIDTH = 30, 64
WEIGHT_VARIANCE = 4.0  # times 1 / fan_in; ReLU needs 2
LEARNING_RATE, BATCH_SIZE, EPOCHS = 0.01, 32, 6
RESCUE_STEPS = 600  # of the rescue: about three trainings


@dataclass(frozen=True)
class Run:
    """What one training came to; every number is measured.

    Attributes:
        name: What was trained.
        test_accuracy: Share of the test digits named right, 0 to 1.
        final_loss: Loss of the last epoch; NaN if the training died.
        nonfinite_weights: How many weight tensors hold a NaN or Inf at the end, of `weights`.
        weights: How many weight tensors there are.
        skipped_steps: Steps left out by the guard.
        trace: The record, where the run was monitored.
    """

    name: str
    test_accuracy: float
    final_loss: float
    nonfinite_weights: int
    weights: int
    skipped_steps: int = 0
    trace: Trace | None = None


@dataclass(frozen=True)
class Story:
    """The four runs, and what was found between the third and the fourth."""

    runs: tuple[Run, ...]
    diagnosis: Diagnosis
    rescue: Rescue

    @property
    def prescription(self) -> str:
        """What the fourth run does differently."""
        return "; ".join(change.title for change in self.rescue.changes) or self.rescue.verdict


def tell_story(data: Digits, *, seed: int = 0, progress: Callable[[str], list[Any]] = lambda name: []) -> Story:
    """Train the four, in order.

    Args:
        data: The digits.
        seed: Seed of weights and shuffling.
        progress: Given the name of a run about to begin, returns callbacks that show how it goes.
    """
    sick = [
        ("(a) plain Keras", {}, []),
        ("(b) Keras global_clipnorm=1", {"global_clipnorm": 1.0}, []),
        ("(c) monitored and guarded", {}, [GradientMonitor(), GradientGuard(clipping=by_global_norm(1.0))]),
    ]
    runs = [
        _train(name, deep_net(seed), data, seed, arguments, [*callbacks, *progress(name)])
        for name, arguments, callbacks in sick
    ]
    diagnosis = diagnose(runs[-1].trace)
    found = rescue(
        _compiled(deep_net(seed), {}),
        data.x_train,
        data.y_train,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        seed=seed,
        budget=RESCUE_STEPS,
    )
    name = "(d) as gr.rescue returns it"
    guards = found.fit_arguments.get("callbacks", [])
    callbacks = [GradientMonitor(), *guards, *progress(name)]
    runs.append(_train(name, found.model, data, seed, None, callbacks, batch_size=found.after.batch_size))
    return Story(tuple(runs), diagnosis, found)


def deep_net(seed: int) -> keras.Model:
    """Return 30 ReLU layers of 64 units whose weights have the variance 4 / fan_in."""
    keras.utils.set_random_seed(seed)
    hidden = [
        keras.layers.Dense(
            WIDTH,
            activation="relu",
            kernel_initializer=keras.initializers.VarianceScaling(WEIGHT_VARIANCE, "fan_in", "untruncated_normal"),
            name=f"hidden_{number}",
        )
        for number in range(1, DEPTH + 1)
    ]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, name="output")])


def _compiled(model: keras.Model, arguments: dict[str, Any]) -> keras.Model:
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, **arguments),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _train(
    name: str,
    model: keras.Model,
    data: Digits,
    seed: int,
    arguments: dict[str, Any] | None,
    callbacks: list,
    *,
    batch_size: int | None = None,
) -> Run:
    keras.utils.set_random_seed(seed)
    if arguments is not None:
        _compiled(model, arguments)
    size = batch_size or BATCH_SIZE
    history = model.fit(
        data.x_train, data.y_train, batch_size=size, epochs=EPOCHS, verbose=0, callbacks=callbacks
    ).history
    _, accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)
    weights = model.get_weights()
    monitors = [callback for callback in callbacks if isinstance(callback, GradientMonitor)]
    return Run(
        name,
        test_accuracy=float(accuracy),
        final_loss=float(history["loss"][-1]),
        nonfinite_weights=sum(not np.isfinite(weight).all() for weight in weights),
        weights=len(weights),
        skipped_steps=int(history.get("skipped_steps", [0])[-1]),
        trace=monitors[0].trace if monitors else None,
    )
