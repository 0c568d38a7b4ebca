"""A program that fails for want of normalization, and what mends it."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing
from tests.corpus.third_tuning_set.own_step import OwnStep


class DenseBlocks(OwnStep):
    """Sixteen residual blocks on a table, in a step of one's own."""

    def __init__(self, normalized: bool):
        super().__init__()
        self.first = layers.Dense(64)
        self.up = [layers.Dense(128, activation="gelu", kernel_initializer="he_normal") for _ in range(16)]
        self.down = [layers.Dense(64, kernel_initializer="he_normal") for _ in range(16)]
        self.norms = [layers.RMSNormalization() if normalized else layers.Identity() for _ in range(17)]
        self.out = layers.Dense(1)

    def call(self, x):
        h = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            h = h + down(up(norm(h)))
        return self.out(self.norms[-1](h))

    def objective(self, x, y):
        return ops.mean(ops.square(y[:, None] - self(x, training=True)))


def residual_table(normalized: bool = False) -> Program:
    """House prices through sixteen blocks that nothing normalizes."""
    keras.utils.set_random_seed(1109)
    x, y = data.boston()
    model = DenseBlocks(normalized)
    model(np.zeros((1, 13), "float32"))
    model.compile(optimizer=optimizers.SGD(0.01))
    return Program(model, data.standardized(x), data.standardized(y), batch_size=32, epochs=10)


CASES = (
    failing(
        "residual_table_without_norm",
        residual_table,
        "Gorishniy et al., 2106.11959, on ResNet for tables; 2002.10444",
        "missing_normalization",
        ("exploding_initialization",),
        normalized=True,
    ),
)
