"""The loss of the best constant prediction, against the loss that Keras computes for it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.core.analysis.baseline import constant_baseline_loss, random_units, simple_fit

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(4, size=200, p=[0.5, 0.3, 0.15, 0.05])
SHARES = np.bincount(LABELS, minlength=4) / 200
NUMBERS = RANDOM.normal(3.0, 2.0, size=(200, 1)).astype("float32")
BITS = (RANDOM.random((200, 3)) < [0.1, 0.5, 0.8]).astype("float32")


WEIGHTS = RANDOM.uniform(0.0, 5.0, size=200)
WEIGHED = np.bincount(LABELS, WEIGHTS) / WEIGHTS.sum()
MEDIAN = np.median(np.repeat(NUMBERS[:, 0], np.round(1e3 * WEIGHTS).astype(int)))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "targets", "guesses"),
    [
        ("SparseCategoricalCrossentropy", LABELS, (SHARES, WEIGHED)),
        ("CategoricalCrossentropy", np.eye(4)[LABELS], (SHARES, WEIGHED)),
        ("BinaryCrossentropy", BITS, (BITS.mean(axis=0), np.average(BITS, axis=0, weights=WEIGHTS))),
        ("MeanSquaredError", NUMBERS, ([NUMBERS.mean()], [np.average(NUMBERS[:, 0], weights=WEIGHTS)])),
        ("MeanAbsoluteError", NUMBERS, ([np.median(NUMBERS)], [MEDIAN])),
    ],
)
def test_chance_is_what_keras_gives_for_the_best_constant(name, targets, guesses, weighted, reduction):
    weights = WEIGHTS if weighted else None
    loss = getattr(keras.losses, name)(reduction=reduction)
    expected = float(loss(targets, np.tile(guesses[weighted], (200, 1)).astype("float32"), weights))
    halves = [targets[:100], targets[100:]] if reduction == "sum" else [targets]
    known = None if weights is None else [weights[:100], weights[100:]] if reduction == "sum" else [weights]
    found = constant_baseline_loss(name, *halves, sample_weights=known, summed=reduction == "sum")
    assert found == pytest.approx(expected / len(halves), rel=1e-3)


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


ROWS = RANDOM.normal(size=(300, 6))
KINDS = np.digitize(ROWS[:, 0] + 0.3 * ROWS[:, 1], [-0.4, 0.4])
JUDGED = np.arange(300) % 2 == 1


@pytest.mark.parametrize(
    ("targets", "learned"),
    [
        (KINDS, True),
        (KINDS.astype("float32")[:, None], True),
        (np.eye(3)[KINDS], True),
        (ROWS[:, :2] @ RANDOM.normal(size=(2, 4)) + 5e3, True),
        (RANDOM.permutation(KINDS), False),
        (RANDOM.normal(size=300), False),
    ],
)
def test_a_simple_function_is_judged_on_rows_that_it_was_not_fitted_to(targets, learned):
    found = simple_fit({"x": ROWS}, targets, JUDGED)
    gain = found.constant - found.fitted
    assert len(gain) == 150 and (gain.mean() > 4.0 * gain.std() / np.sqrt(150)) == learned
    assert found.answers.shape == (150, len(found.constants)) and list(found.rows[:2]) == [1, 3]


@pytest.mark.parametrize("targets", [lambda x: np.linalg.norm(x, axis=1) > 1.5, lambda x: np.abs(x[:, 0])])
def test_what_no_linear_function_learns_one_of_random_units_may(targets):
    x = np.random.default_rng(0).normal(size=(800, 3))
    found = simple_fit({"x": x, "units": random_units(x)}, targets(x), np.arange(800) % 2 == 1)
    gain = found.constant - found.fitted
    assert (
        found.of == "units"
        and gain.mean() > 4.0 * gain.std() / np.sqrt(400)
        and found.fitted.mean() < 0.9 * found.constant.mean()
    )


@pytest.mark.parametrize("targets", [np.zeros(300), RANDOM.integers(0, 9, (300, 12)), np.full(300, np.nan)])
def test_targets_without_a_simple_function_give_none(targets):
    assert simple_fit({"x": ROWS}, targets, JUDGED) is None
