"""Identity RNN and chrono bias, in Keras' own layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.initializers import ChronoBias, chrono_lstm, identity_rnn


def test_an_identity_rnn_carries_its_state_and_its_gradient_through_any_length():
    layer = keras.layers.SimpleRNN(16, **identity_rnn())
    start = tf.constant(np.random.default_rng(0).uniform(1, 2, (3, 16)).astype(np.float32))
    silence = tf.zeros((3, 200, 4))
    with tf.GradientTape() as tape:
        tape.watch(start)
        end = layer(silence, initial_state=start)
        total = tf.reduce_sum(end)
    np.testing.assert_allclose(end, start, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, start), np.ones((3, 16)), rtol=1e-6)
    assert 0.0005 < np.std(layer.cell.kernel) < 0.002


def test_the_scale_of_the_identity():
    layer = keras.layers.SimpleRNN(5, **identity_rnn(scale=0.5))
    layer.build((None, 3, 2))
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, 0.5 * np.eye(5))
    with pytest.raises(ValueError, match="scale=0"):
        identity_rnn(scale=0)


def test_layers_of_one_identity_rnn_have_inputs_of_their_own():
    arguments = identity_rnn()
    one, other = (keras.layers.SimpleRNN(4, **arguments) for _ in range(2))
    one.build((None, 3, 2)), other.build((None, 3, 2))
    assert not np.allclose(one.cell.kernel, other.cell.kernel)


def gates(layer, steps, features=3):
    """Return the input and the forget gate of the first step, by Keras' own arithmetic, for inputs of zero."""
    layer.build((None, steps, features))
    bias = np.asarray(layer.cell.bias, np.float64)
    gate = 1 / (1 + np.exp(-bias))
    units = layer.units
    return gate[:units], gate[units : 2 * units], bias


def test_chrono_gates_by_the_formula():
    layer = keras.layers.LSTM(**chrono_lstm(4000, max_length=300, seed=2), recurrent_initializer="zeros")
    write, keep, bias = gates(layer, 5, features=1)
    assert np.allclose(write, 1 - keep)  # b_i = -b_f
    np.testing.assert_array_equal(bias[8000:], 0)
    steps = np.exp(bias[4000:8000])  # uniform from 1 to T - 1
    assert steps.min() >= 1 - 1e-5 and steps.max() <= 299 + 1e-3
    assert steps.mean() == pytest.approx(150, abs=4 * 86 / np.sqrt(4000))
    assert steps.std() == pytest.approx(298 / np.sqrt(12), rel=0.05)
    memory = 1 / (1 - keep)  # steps until the cell has fallen to 1/e
    np.testing.assert_allclose(memory, 1 + steps, rtol=1e-5)


def test_keras_puts_each_gate_where_the_bias_says():
    layer = keras.layers.LSTM(**chrono_lstm(8, max_length=50, seed=0), kernel_initializer="zeros", return_state=True)
    cell = tf.ones((1, 8))
    _, _, after = layer(tf.zeros((1, 1, 3)), initial_state=[tf.zeros((1, 8)), cell])
    _, keep, _ = gates(layer, 1)
    np.testing.assert_allclose(after[0], keep, rtol=1e-5)  # nothing is written: tanh(0); the old cell is kept


@pytest.mark.parametrize("units", [4, 6])
def test_with_keras_own_forget_bias_the_remedy_is_named(units):
    layer = keras.layers.LSTM(units, bias_initializer=ChronoBias(units, max_length=10))
    with pytest.raises(ValueError, match="unit_forget_bias=False"):
        layer.build((None, 5, 2))


def test_units_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(32,\)"):
        keras.layers.LSTM(4, bias_initializer=ChronoBias(8, max_length=9), unit_forget_bias=False).build((None, 5, 2))


@pytest.mark.parametrize("units, length", [(0, 10), (True, 10), (8, 2), (8, float("inf"))])
def test_arguments_out_of_range(units, length):
    with pytest.raises(ValueError, match=r"`(units|max_length)`"):
        ChronoBias(units, max_length=length)
