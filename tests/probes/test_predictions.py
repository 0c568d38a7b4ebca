import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.predictions import best_constant_loss

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
