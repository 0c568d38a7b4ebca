"""Growth through time against Jacobians that numpy multiplies in float64, and every way a recurrent layer is built."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from gradrecipes import probes
from gradrecipes.probes.recurrent import WINDOW, Recurrence, recurrent
from gradrecipes.training.recovery.model_state import variables_of

layers = keras.layers


def sequences(samples: int = 6, steps: int = 12, features: int = 3, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).normal(size=(samples, steps, features))).astype(np.float32)


def net(layer, steps: int = 12, features: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((steps, features)), layer, layers.Dense(1)])


def normal(std: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=std, seed=1)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# -- steps written by hand, one sample: (weights, input, states) -> states, the first of which is the output -----------
def simple_step(weights, x, states):
    kernel, recurrent_kernel, bias = weights
    return [np.tanh(x @ kernel + states[0] @ recurrent_kernel + bias)]


def lstm_step(weights, x, states):
    kernel, recurrent_kernel, bias = weights
    i, f, c, o = np.split(x @ kernel + states[0] @ recurrent_kernel + bias, 4)
    cell = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(c)
    return [sigmoid(o) * np.tanh(cell), cell]


def jacobian(step, weights, x, states):
    """Return d(all states after) / d(all states before) by central differences."""
    cuts = np.cumsum([len(part) for part in states])[:-1]

    def flat(given):
        return np.concatenate(step(weights, x, np.split(given, cuts)))

    at = np.concatenate(states)
    return np.array([(flat(at + d) - flat(at - d)) / 2e-6 for d in 1e-6 * np.eye(len(at))]).T


@pytest.mark.parametrize(
    "layer, step, count",
    [
        (lambda: layers.SimpleRNN(5, recurrent_initializer=normal(0.7)), simple_step, 1),
        (lambda: layers.LSTM(4, recurrent_initializer=normal(1.5)), lstm_step, 2),
    ],
)
def test_growth_against_jacobians_in_float64(layer, step, count):
    model, x, seed = net(layer()), sequences(), 3
    weights = [np.asarray(w, np.float64) for w in model.layers[0].get_weights()]
    units = weights[1].shape[0]
    starts = np.random.default_rng(seed).standard_normal((len(x), units))
    logs, norms = [], []
    for sample, start in zip(x.astype(np.float64), starts, strict=True):
        states = [[np.zeros(units)] * count]
        for entering in sample:
            states.append(step(weights, entering, states[-1]))
        vector = np.concatenate([start, np.zeros((count - 1) * units)])  # the output is the first state
        norms.append(np.concatenate(states[-1]))
        before = np.linalg.norm(vector)
        for entering, state in zip(sample[::-1], states[-2::-1], strict=True):
            vector = jacobian(step, weights, entering, state).T @ vector
        logs.append(np.log(np.linalg.norm(vector) / before) / len(sample))
    (found,) = recurrent(model, x, seed=seed)
    assert np.log(found.growth_per_step) == pytest.approx(np.mean(logs), abs=1e-4)
    assert np.log(found.growth_fastest_sample) == pytest.approx(np.max(logs), abs=1e-4)
    assert found.log10_growth == pytest.approx(12 * np.mean(logs) / np.log(10), abs=1e-3)
    assert found.state_rms == pytest.approx(np.sqrt(np.mean(np.square(norms))), rel=1e-4)


def test_a_linear_layer_grows_by_its_own_factor():
    layer = layers.SimpleRNN(4, activation=None, recurrent_initializer=keras.initializers.Identity(1.5))
    (found,) = recurrent(net(layer), sequences())
    assert found.growth_per_step == pytest.approx(1.5, rel=1e-5)
    assert found.spectral_radius == pytest.approx(1.5)
    assert found.state_growth_per_step == pytest.approx(1.5, abs=0.05)
    assert found.growth == pytest.approx(1.5**12, rel=1e-4)
    assert (found.steps, found.window, found.activation) == (12, 12, "linear")


def test_the_spectral_radius_of_a_gated_layer_is_that_of_its_candidate():
    model = net(layers.LSTM(4))
    kernel = model.layers[0].get_weights()[1]
    expected = np.abs(np.linalg.eigvals(kernel[:, 8:12])).max()
    assert recurrent(model, sequences())[0].spectral_radius == pytest.approx(expected, rel=1e-5)
    model = net(layers.GRU(4))
    expected = np.abs(np.linalg.eigvals(model.layers[0].get_weights()[1][:, 8:])).max()
    assert recurrent(model, sequences())[0].spectral_radius == pytest.approx(expected, rel=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = layers.GRU(3, return_sequences=True), layers.LSTM(2), layers.GRU(2)

    def call(self, x):
        return self.second(self.first(2.0 * x))


def test_every_way_of_building_is_heard():
    x = sequences()
    several = [layers.SimpleRNN(4, return_sequences=True), layers.Bidirectional(layers.LSTM(3))]
    model = keras.Sequential([keras.Input((12, 3)), *several, layers.Dense(1)])
    found = recurrent(model, x)
    assert [one.kind for one in found] == ["SimpleRNN", "LSTM", "LSTM"]
    assert all(one.growth_per_step > 0 and one.note is None for one in found)
    subclassed = Subclassed()
    subclassed.idle.build((None, 12, 3))
    subclassed(x)
    found = recurrent(subclassed, x)
    assert [one.growth_per_step is None for one in found] == [False, False, True]
    assert "was not called" in found[2].note
    (stacked,) = recurrent(net(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])), x)
    assert stacked.growth_per_step > 0 and stacked.spectral_radius is None
    images = np.random.default_rng(0).normal(size=(2, 5, 6, 6, 1)).astype(np.float32)
    conv = keras.Sequential([keras.Input((5, 6, 6, 1)), layers.ConvLSTM2D(2, 3), layers.Flatten(), layers.Dense(1)])
    (found,) = recurrent(conv, images)
    assert found.growth_per_step > 0 and found.units == 2
    assert recurrent(keras.Sequential([keras.Input((3,)), layers.Dense(1)]), x[:, 0]) == ()


def test_backwards_is_the_reversed_sequence():
    x = sequences()
    plain, backwards = (net(layers.SimpleRNN(5, go_backwards=back)) for back in (False, True))
    backwards.set_weights(plain.get_weights())
    one, other = recurrent(backwards, x)[0], recurrent(plain, x[:, ::-1])[0]
    assert one.growth_per_step == pytest.approx(other.growth_per_step, rel=1e-5)


def test_masked_steps_do_not_count():
    tokens = np.random.default_rng(0).integers(1, 9, (6, 10))
    padded = np.concatenate([tokens, np.zeros((6, 7), int)], axis=1)

    def embedded(steps):
        keras.utils.set_random_seed(0)
        embedding = layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")
        return keras.Sequential([keras.Input((steps,), dtype="int32"), embedding, layers.GRU(5), layers.Dense(1)])

    one, other = recurrent(embedded(10), tokens)[0], recurrent(embedded(17), padded)[0]
    assert (other.steps, other.window) == (17, 10)
    for name in ("growth_per_step", "growth", "state_rms"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-4)
    some = np.where(np.arange(10) < np.arange(5, 11)[:, None], tokens, 0)  # each sequence of a length of its own
    layer = embedded(10).layers[1]
    sequence = sequences(6, 10, 4)
    growth = Recurrence(layer, sequence, mask=some != 0, window=99)
    logs = growth.backwards(growth.states(), seed=0)
    assert np.array_equal(logs == 0, (some == 0).T)
    empty = recurrent(embedded(10), 0 * tokens)[0]
    assert empty.growth_per_step is None and "mask" in empty.note


def test_a_stateful_layer_begins_at_its_state_and_keeps_it():
    x = sequences(4)
    layer = layers.SimpleRNN(3, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(4, 12, 3)), layer, layers.Dense(1)])
    model(x)
    state = np.asarray(layer.states[0])
    assert np.abs(state).max() > 0.1
    recurrent(model, x)
    assert np.array_equal(state, np.asarray(layer.states[0]))
    first = Recurrence(layer, x, window=99).states()[0]
    assert np.array_equal(state, np.asarray(first[0]))


def test_the_model_is_as_it_was_and_long_sequences_are_extrapolated():
    layer = layers.LSTM(3, dropout=0.5, recurrent_dropout=0.2)
    model = keras.Sequential([keras.Input((WINDOW + 50, 3)), layers.BatchNormalization(), layer, layers.Dense(1)])
    before = [np.asarray(v) for v in variables_of(model)]
    x = sequences(3, WINDOW + 50)
    one, again = recurrent(model, x), recurrent(model, x)
    assert one == again
    assert all(np.array_equal(was, np.asarray(now)) for was, now in zip(before, variables_of(model), strict=True))
    (found,) = one
    assert (found.steps, found.window) == (WINDOW + 50, WINDOW) and "extrapolated" in found.note
    assert found.log10_growth == pytest.approx((WINDOW + 50) * np.log10(found.growth_per_step))
    json.dumps([part.to_json() for part in one], allow_nan=False)


def test_states_that_overflow_are_told():
    layer = layers.SimpleRNN(4, activation=None, recurrent_initializer=keras.initializers.Identity(1e4))
    (found,) = recurrent(net(layer, steps=20), sequences(steps=20))
    assert 8 <= found.nonfinite_step <= 11 and found.growth_per_step is None
    json.dumps(found.to_json(), allow_nan=False)
    assert found.state_growth_per_step == pytest.approx(1e4, rel=0.1)


def test_what_fails_is_told():
    model = net(layers.SimpleRNN(2))
    assert "could not be called" in probes.recurrent(model, np.ones((2, 5), np.float32))[0].note


def test_float16():
    layer = layers.LSTM(4, dtype="mixed_float16")
    found, whole = recurrent(net(layer), sequences())[0], net(layers.LSTM(4))
    whole.layers[0].set_weights(layer.get_weights())
    assert found.growth_per_step == pytest.approx(recurrent(whole, sequences())[0].growth_per_step, rel=0.02)
