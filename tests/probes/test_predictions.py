import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.loss import losses_by_row
from gradrecipes.probes.predictions import best_constant_loss, simple_readings, usual_error

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
    found = simple_readings(batches, tokens={0})
    assert [(one.target, one.clear, one.rows) for one in found] == [(0, True, 160), (1, True, 160), (2, False, 160)]
    assert simple_readings([(words, None)]) == ()


def test_of_a_copy_only_what_a_code_of_one_number_holds_is_a_witness():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(320, 1)) @ rng.normal(size=(1, 12)) + 0.5 * rng.normal(size=(320, 12))
    (found,) = simple_readings([(numbers, numbers)])
    assert "principal component" in found.of and found.clear and found.linear > 0.1


def test_whole_numbers_may_be_names_of_words():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 90, (640, 12)).astype("float32")
    y = (words == 7).any(axis=1).astype("int64") + (words == 60).any(axis=1)
    (found,) = simple_readings([(words[at : at + 32], y[at : at + 32]) for at in range(0, 640, 32)])
    assert found.clear and found.of == "how often each number occurs in the inputs"


@pytest.mark.parametrize("head", ["softmax", "linear", "sigmoid", "number"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_net_is_compared_with_a_simple_function_in_its_own_loss(head, trained):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 6)).astype("float32")
    y = (x[:, 0] > 0).astype("int64") if head != "number" else (3.0 + 2.0 * x[:, 0]).astype("float32")
    keras.utils.set_random_seed(0)
    units, loss = {
        "softmax": (2, "sparse_categorical_crossentropy"),
        "linear": (2, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        "sigmoid": (1, "binary_crossentropy"),
        "number": (1, "mean_absolute_error"),
    }[head]
    activation = head if head in ("softmax", "sigmoid") else None
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, activation=activation)])
    model.compile(keras.optimizers.Adam(0.05), loss)
    if trained:
        model.fit(x, y, epochs=15, verbose=0)
    batches = [(tf.constant(x[at : at + 32]), tf.constant(y[at : at + 32])) for at in range(0, 512, 32)]
    (found,) = simple_readings(batches, model=model, losses=losses_by_row(model, 1))
    assert found.clear and found.own_linear < found.own_constant
    assert (found.share() > 0.8) == trained and (found.share() < 0.5) != trained


@pytest.mark.parametrize("labels", [False, True])
def test_the_usual_error_is_that_of_the_class_or_of_the_best_scale_and_shift(labels):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60) if labels else rng.normal(size=(60, 2))
    right = np.eye(3)[y] if labels else 4.0 - 7.0 * y
    assert usual_error(y, right).max() < 1e-9 < 0.3 < usual_error(y, rng.permutation(right)).mean()
    with pytest.raises(ValueError, match="must fit the targets"):
        usual_error(rng.integers(0, 3, 60), rng.normal(size=(60, 16)))  # codes, not classes
    with pytest.raises(ValueError, match="must fit the targets"):
        usual_error(rng.normal(size=(60, 2)), rng.normal(size=(60, 5)))
