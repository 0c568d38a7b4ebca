"""The loss of the best constant prediction, against the loss that Keras computes for it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.core.analysis.baseline import constant_baseline_loss

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(4, size=200, p=[0.5, 0.3, 0.15, 0.05])
SHARES = np.bincount(LABELS, minlength=4) / 200
NUMBERS = RANDOM.normal(3.0, 2.0, size=(200, 1)).astype("float32")
BITS = (RANDOM.random((200, 3)) < [0.1, 0.5, 0.8]).astype("float32")


@pytest.mark.parametrize(
    ("name", "targets", "guess"),
    [
        ("sparse_categorical_crossentropy", LABELS, np.tile(SHARES, (200, 1))),
        ("categorical_crossentropy", np.eye(4)[LABELS], np.tile(SHARES, (200, 1))),
        ("binary_crossentropy", BITS, np.tile(BITS.mean(axis=0), (200, 1))),
        ("mse", NUMBERS, np.full((200, 1), NUMBERS.mean())),
        ("mean_absolute_error", NUMBERS, np.full((200, 1), np.median(NUMBERS))),
    ],
)
def test_chance_is_what_keras_gives_for_the_best_constant(name, targets, guess):
    expected = float(np.mean(keras.losses.get(name)(targets, guess.astype("float32"))))
    assert constant_baseline_loss(name, targets) == pytest.approx(expected, rel=1e-4)


def test_names_are_taken_as_classes_write_them():
    assert constant_baseline_loss("MeanSquaredError", NUMBERS) == constant_baseline_loss("mse", NUMBERS)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        (None, [LABELS]),
        ("my_loss", [LABELS]),
        ("mse", [None]),
        ("mse", []),
        ("mse", [np.zeros(0)]),
        ("mse", [3.0]),
        ("mse", [np.array(["a", "b"])]),
        ("mse", [np.zeros((2, 3)), np.zeros((2, 4))]),
        ("binary_crossentropy", [9 * BITS]),
    ],
)
def test_what_it_cannot_know_is_none(name, targets):
    assert constant_baseline_loss(name, *targets) is None


def test_batches_are_taken_together():
    assert constant_baseline_loss("mse", NUMBERS[:50], NUMBERS[50:]) == constant_baseline_loss("mse", NUMBERS)


def test_missing_targets_are_left_out():
    broken = NUMBERS.copy()
    broken[3] = np.nan
    assert constant_baseline_loss("mse", broken) == pytest.approx(
        float(np.var(np.delete(NUMBERS, 3, axis=0))), rel=1e-5
    )
