import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.probes.held_back import held_back_readings
from gradrecipes.probes.loss import losses_by_row


@pytest.mark.parametrize("paired", [True, False])
def test_what_was_learned_by_heart_does_not_hold_for_rows_held_back(paired):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 12)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    y = y if paired else rng.permutation(y)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(x[:256], y[:256], epochs=30, verbose=0)
    batches = [(x[at : at + 32], y[at : at + 32]) for at in range(0, 512, 32)]
    batches = [tuple(map(tf.constant, batch)) for batch in batches]
    (found,) = held_back_readings(model, losses_by_row(model, 1), batches[:8], batches[8:])
    assert found.rows == 256 and found.trained > 4.0 * found.trained_noise
    assert found.memorized != paired
    for validation, judged in ((batches[8:], True), ([(tf.constant(x[y == 1]), tf.constant(y[y == 1]))], False)):
        (found,) = held_back_readings(model, losses_by_row(model, 1), batches[:8], batches[8:], validation)
        assert (found.validated is not None) == judged  # of a single class no row can be given another target


def test_no_loss_of_single_rows_is_no_reading():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    batches = [(tf.zeros((64, 2)), tf.zeros((64, 1)))]
    assert held_back_readings(model, [(0, 0, lambda y, p: tf.reduce_mean((y - p) ** 2))], batches, batches) == ()
    assert held_back_readings(model, [(1, 0, lambda y, p: p)], batches, batches) == ()


def test_where_all_data_are_trained_on_only_the_answers_to_these_are_read():
    """By heart or not cannot be told then, nor whether a validation that is worse is another one."""
    x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    batches = [(x[at : at + 32], x[at : at + 32, :1]) for at in range(0, 256, 32)]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(x, x[:, :1], epochs=20, verbose=0)
    others = [(part, target[::-1]) for part, target in batches]
    (found,) = held_back_readings(model, losses_by_row(model, 1), batches, [], others)
    assert found.own < 0.1 < found.trained == found.held
    assert found.rows == 0
    assert not found.memorized
    assert not found.lost_in_validation
