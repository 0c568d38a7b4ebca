"""Programs that fail by what float16 cannot hold, and what mends them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Energy(layers.Layer):
    """Sum of squares over a frame."""

    def call(self, x):
        return ops.sum(ops.square(x), axis=-1)


def audio_energy(dtype: str = "mixed_float16") -> Program:
    """Frames of 16-bit sound: the square of a sample is more than float16 can hold."""
    keras.utils.set_random_seed(58)
    rng = np.random.default_rng(9)
    steps = np.arange(320)
    kind = rng.integers(0, 3, 900)
    envelope = np.stack([np.ones(320), np.linspace(0, 1, 320), np.abs(np.sin(steps / 50))])[kind]
    x = envelope * np.sin(steps * rng.uniform(0.1, 0.6, (900, 1))) * 3000 + rng.normal(scale=50, size=(900, 320))
    x = x.astype("float32").reshape(900, 20, 16)
    inputs = keras.Input((20, 16), dtype="float32")
    energy = Energy(dtype=dtype)(inputs)
    energy = layers.Rescaling(1 / 1e8, dtype="float32")(energy)
    hidden = layers.Dense(32, activation="relu")(energy)
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(hidden))
    model.compile(optimizers.Adam(0.01), LOGITS, metrics=["accuracy"])
    return Program(model, x, kind, batch_size=32, epochs=8)


class FactorizationMachine(keras.Model):
    """Pairwise interactions by the trick of squares of sums, over counts."""

    def __init__(self, wide: bool):
        super().__init__()
        self.factors = self.add_weight(
            shape=(64, 32), initializer=keras.initializers.RandomNormal(stddev=0.3), name="v"
        )
        self.linear = layers.Dense(10)
        self.head = layers.Dense(10, dtype="float32")
        self.normal = layers.LayerNormalization(dtype="float32")
        self.wide = wide

    def call(self, x):
        dtype = "float32" if self.wide else "float16"
        x, factors = ops.cast(x, dtype), ops.cast(self.factors, dtype)
        pairs = ops.square(x @ factors) - ops.square(x) @ ops.square(factors)
        return self.head(self.normal(ops.cast(pairs, "float32"))) + ops.cast(self.linear(x / 16), "float32")


def interactions(wide: bool = False) -> Program:
    """Counts to 160 under squares of sums in float16."""
    keras.utils.set_random_seed(59)
    x, y = data.digits()
    model = FactorizationMachine(wide)
    model(np.zeros((1, 64), "float32"))
    model.compile(optimizers.Adam(0.003), LOGITS, metrics=["accuracy"])
    return Program(model, x * 10, y, batch_size=32, epochs=6)


CASES = (
    failing(
        "energy_of_sound_in_float16",
        audio_energy,
        "keras issue 11832; NVIDIA's guide to mixed precision on sums and squares",
        "float16_overflow",
        ("unscaled_inputs",),
        needs="mixed_float16",
        dtype="float32",
    ),
    failing(
        "factorization_machine_in_float16",
        interactions,
        "keras issue 16552, 'Mix precision leads to nan loss'",
        "float16_overflow",
        ("unscaled_inputs",),
        needs="mixed_float16",
        wide=True,
    ),
)
