"""What monitoring and guarding cost: time of a training step against the bare step, inside `model.fit`.

    python benchmarks/overhead.py [--rounds 30] [--steps 40] [--only lstm]

Variants are interleaved within one process; a round runs each once, and the ratio to the bare step of the same
round is what the median is taken of. A step's time is that of an epoch, from its begin to its end, so that the
building of the fit does not dilute it. "recompute" is the usual answer to "how do I see my gradients": a callback
that computes them anew with a GradientTape.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import gradrecipes as gr

BATCH = 64
layers = keras.layers


def mlp(depth: int, width: int) -> keras.Model:
    hidden = [layers.Dense(width, activation="relu", kernel_initializer="he_normal") for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])


def cnn() -> keras.Model:
    return keras.Sequential([
        keras.Input((64,)), layers.Reshape((8, 8, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(), layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10),
    ])  # fmt: skip


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Reshape((8, 8)), layers.LSTM(128), layers.Dense(10)])


def transformer() -> keras.Model:
    inputs = keras.Input((64,))
    x = layers.Dense(64)(layers.Reshape((8, 8))(inputs))
    for _ in range(2):
        x = x + layers.MultiHeadAttention(4, 16)(*[layers.LayerNormalization()(x)] * 2)
        x = x + layers.Dense(64)(layers.Dense(128, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


NETS = {
    "MLP 20 x 128": lambda: mlp(20, 128),
    "MLP 100 x 32": lambda: mlp(100, 32),
    "MLP 4 x 1024": lambda: mlp(4, 1024),
    "CNN": cnn,
    "LSTM": lstm,
    "transformer": transformer,
}


class StepTimer(keras.callbacks.Callback):
    """Time of an epoch by step. It has no hook at every batch, which would make Keras wait for every step's logs."""

    def on_epoch_begin(self, epoch, logs=None):
        """Read the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Read the clock again."""
        self.seconds = (time.perf_counter() - self.start) / self.steps


class Recompute(keras.callbacks.Callback):
    """The gradients once more, for their norms: the usual answer."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = tf.constant(x[:BATCH]), tf.constant(y[:BATCH])

    def on_train_batch_end(self, batch, logs=None):
        """Compute and read every norm."""
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(y=self.y, y_pred=self.model(self.x, training=True))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.norms = [float(tf.norm(gradient)) for gradient in gradients if gradient is not None]


def variants(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[dict, list]]:
    """Return, by name, the arguments of the optimizer and the callbacks."""
    return {
        "bare": ({}, []),
        "monitor": ({}, [gr.GradientMonitor()]),
        "keras global_clipnorm": ({"global_clipnorm": 1.0}, []),
        "monitor + skip + clip": (
            {}, [gr.GradientMonitor(), gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))],
        ),
        "recompute": ({}, [Recompute(x, y)]),
    }  # fmt: skip


def measure(net: str, *, rounds: int, steps: int, jit: bool) -> dict[str, float]:
    """Return the median ratio to the bare step by variant, and the bare step's milliseconds."""
    x, y = load_digits(return_X_y=True)
    x = np.tile((x / 16).astype("float32"), (2, 1))[: steps * BATCH]
    y = np.tile(y, 2)[: steps * BATCH]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).cache()
    models, callbacks = {}, {}
    for name, (arguments, own) in variants(x, y).items():
        keras.utils.set_random_seed(0)
        models[name] = NETS[net]()
        models[name].compile(
            optimizer=keras.optimizers.Adam(1e-4, **arguments),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit,
        )
        callbacks[name] = own
    timer, seconds = StepTimer(), {name: [] for name in models}
    for turn in range(-1, rounds):
        for name, model in models.items():
            if name == "recompute" and turn > 2:
                continue
            few = data.take(8) if name == "recompute" else data
            timer.steps = 8 if name == "recompute" else steps
            model.fit(few, verbose=0, callbacks=[*callbacks[name], timer])
            if turn >= 0:
                seconds[name].append(timer.seconds)
    bare = np.array(seconds["bare"])
    ratios = {name: float(np.median(np.array(of) / bare[: len(of)])) for name, of in seconds.items()}
    return {**ratios, "milliseconds": float(np.median(bare) * 1e3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", default="", help="part of a net's name")
    parser.add_argument("--jit", action="store_true", help="compile every step by XLA")
    arguments = parser.parse_args()
    table = Table("net", "bare, ms", "monitor", "keras global_clipnorm", "monitor + skip + clip", "recompute")
    for net in (net for net in NETS if arguments.only.lower() in net.lower()):
        result = measure(net, rounds=arguments.rounds, steps=arguments.steps, jit=arguments.jit)
        shown = [f"{result[column.header]:.2f}" for column in table.columns[2:]]
        table.add_row(net, f"{result['milliseconds']:.1f}", *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
