import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.predictions import best_constant_loss, linear_readings

TARGETS = tf.constant(np.random.default_rng(0).gamma(2.0, 3.0, 200), tf.float32)


def fitted(loss, columns=1, middle=6.0):
    return best_constant_loss(
        lambda constants, rows: tf.reduce_mean(loss(TARGETS[rows], constants)),
        samples=200,
        columns=columns,
        middle=middle,
    )


def test_the_median_is_the_constant_of_absolute_errors():
    spread = np.abs(np.asarray(TARGETS) - np.median(TARGETS)).mean()
    assert fitted(lambda y, constants: tf.abs(y - constants)) == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize("middle", [6.0, -0.01])  # no spread at all starts at the second
def test_a_likelihood_of_two_columns_is_fitted(middle):
    def likelihood(y, constants):
        return tf.math.log(constants[1]) + 0.5 * ((y - constants[0]) / constants[1]) ** 2

    expected = np.log(np.std(TARGETS)) + 0.5
    assert fitted(likelihood, columns=2, middle=middle) == pytest.approx(expected, rel=1e-3)


def test_a_loss_without_a_lower_bound_has_no_best_constant():
    assert fitted(lambda y, constants: y - constants) is None


def test_a_loss_that_compares_samples_says_nothing_of_a_constant():
    assert fitted(lambda y, constants: (y - tf.reduce_mean(y)) ** 2 + constants**2) is None


def test_counts_of_tokens_and_numbers_predict_each_target():
    rng = np.random.default_rng(0)
    words, numbers = rng.integers(0, 40, (320, 8)), rng.normal(size=(320, 3)).astype("float32")
    targets = ((words == 7).any(axis=1).astype("int64"), numbers[:, 1], rng.permutation(numbers[:, 2]))
    batches = [
        ((words[at : at + 32], numbers[at : at + 32]), tuple(y[at : at + 32] for y in targets))
        for at in range(0, 320, 32)
    ]
    found = linear_readings(batches, tokens={0})
    assert [(one.target, one.clear, one.rows) for one in found] == [(0, True, 160), (1, True, 160), (2, False, 160)]
    assert linear_readings([(words, None)]) == ()
