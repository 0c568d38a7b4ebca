"""The curvature against the exact Hessian of small nets, and where full-batch training comes to rest."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.core.trace.trial_reading import Sharpness
from gradrecipes.probes.sharpness import Curvature, extreme_eigenvalues, sharpness
from gradrecipes.training.recovery.model_state import variables_of
from tests.training.nets import digits

layers = keras.layers


def small(loss="mse", optimizer="sgd", middle=()) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(6, activation="tanh"), *middle, layers.Dense(2)])
    model.compile(optimizer, loss)
    return model


def data(samples: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(samples, 5)).astype(np.float32), random.normal(size=(samples, 2)).astype(np.float32)


def exact_hessian(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Hessian of the mean squared error of `small()`, by differences of a gradient written by hand."""
    weights = [np.asarray(w, np.float64) for w in model.get_weights()]
    shapes, x, y = [w.shape for w in weights], x.astype(np.float64), y.astype(np.float64)

    def gradient(flat: np.ndarray) -> np.ndarray:
        cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        w1, b1, w2, b2 = (part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True))
        hidden = np.tanh(x @ w1 + b1)
        error = 2 * (hidden @ w2 + b2 - y) / y.size
        back = error @ w2.T * (1 - hidden**2)
        parts = (x.T @ back, back.sum(0), hidden.T @ error, error.sum(0))
        return np.concatenate([part.ravel() for part in parts])

    flat = np.concatenate([w.ravel() for w in weights])
    steps = 1e-5 * np.eye(len(flat))
    columns = [(gradient(flat + step) - gradient(flat - step)) / 2e-5 for step in steps]
    return np.array(columns)


def test_products_and_eigenvalues_against_the_exact_hessian():
    model, (x, y) = small(), data()
    hessian = exact_hessian(model, x, y)
    vector = np.random.default_rng(2).standard_normal(len(hessian)).astype(np.float32)
    for method in (None, "finite_difference"):
        curvature = Curvature(model, [(x, y)], seed=0)
        curvature.method = method
        tolerance = 1e-5 if method is None else 3e-3
        assert curvature.product(vector) == pytest.approx(hessian @ vector, abs=tolerance * np.linalg.norm(hessian))
    found = sharpness(model, x, y, batch_size=40, iterations=40)
    values = np.linalg.eigvalsh(hessian)
    assert found.converged and found.method == "double_backprop"
    assert found.lambda_max == pytest.approx(values[-1], rel=0.01)
    assert found.limit == pytest.approx(200) and found.ratio == pytest.approx(values[-1] / 200, rel=0.01)


def test_several_batches_make_their_mean():
    model, (x, y) = small(), data(48)
    whole = sharpness(model, x, y, batch_size=48, iterations=30)
    parts = sharpness(model, x, y, batch_size=8, batches=6, iterations=30)
    assert parts.lambda_max == pytest.approx(whole.lambda_max, rel=0.01)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_preconditioned_hessian_of_a_running_adam(amsgrad):
    model, (x, y) = small(optimizer=keras.optimizers.Adam(0.01, epsilon=1e-4, amsgrad=amsgrad)), data()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    adam, ending = model.optimizer, "velocity_hat" if amsgrad else "velocity"
    slots = [v for v in adam.variables if v.name.endswith(ending)]
    v = np.concatenate([np.asarray(slot, np.float64).ravel() for slot in slots])
    # One more step of Keras' own moves the weights by rate * m / (sqrt(v / (1 - beta_2^t)) + epsilon / ...).
    grown = 1 - 0.999 ** int(adam.iterations)
    divisor = (np.sqrt(v) + 1e-4) / np.sqrt(grown)
    hessian = exact_hessian(model, x, y)
    expected = np.linalg.eigvals(hessian / divisor[:, None]).real.max()
    found = sharpness(model, x, y, batch_size=40, iterations=60)
    assert (found.preconditioned, found.preconditioner) == (True, "state")
    assert found.lambda_max == pytest.approx(expected, rel=0.02)
    assert found.limit == pytest.approx(38 / 0.01)


@pytest.mark.parametrize("name", ["Adam", "Nadam", "RMSprop", "Adagrad", "Adamax"])
def test_before_the_first_step_gradients_stand_for_the_memory(name):
    model, (x, y) = small(optimizer=getattr(keras.optimizers, name)(0.01)), data(64)
    found = sharpness(model, x, y, batch_size=16)
    assert found.preconditioner == "gradients" and found.ratio > 0
    assert "guessed from first gradients" in str(found)


def test_the_model_is_as_it_was_and_chance_is_fixed():
    model = small(middle=[layers.BatchNormalization(), layers.Dropout(0.5)], optimizer="adam")
    x, y = data()
    model.fit(x, y, verbose=0)
    before = [np.asarray(v) for v in variables_of(model)]
    one, again, other = (sharpness(model, x, y, batch_size=20, seed=seed) for seed in (4, 4, 5))
    for was, now in zip(before, variables_of(model), strict=True):
        assert np.array_equal(was, np.asarray(now))
    assert one == again and one.lambda_max != other.lambda_max


@tf.custom_gradient
def _refuses(tensor):
    @tf.custom_gradient
    def first(gradient):
        def second(_):
            raise LookupError("no second derivative")

        return tf.identity(gradient) * 1.0, second

    return tf.identity(tensor), first


class Refuses(layers.Layer):
    def call(self, inputs):
        return _refuses(inputs)


def test_a_layer_without_second_derivative_is_measured_by_differences():
    plain, odd = small(), small(middle=[Refuses()])
    odd.set_weights(plain.get_weights())
    x, y = data()
    one, other = sharpness(plain, x, y, batch_size=40), sharpness(odd, x, y, batch_size=40)
    assert (one.method, other.method) == ("double_backprop", "finite_difference")
    assert other.lambda_max == pytest.approx(one.lambda_max, rel=0.02)


@pytest.mark.parametrize("layer", [layers.SimpleRNN, layers.LSTM, layers.GRU])
def test_recurrent_loops_have_a_second_derivative(layer):
    model = keras.Sequential([keras.Input((6, 5)), layer(4), layers.Dense(2)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 6, 5)).astype(np.float32)
    found = sharpness(model, x, data(8)[1], batch_size=8)
    assert found.method == "double_backprop" and found.lambda_max > 0


def test_what_cannot_be_had_is_said():
    x, y = data()
    lion = sharpness(small(optimizer="lion"), x, y)
    assert lion.lambda_max > 0 and lion.ratio is None and "Lion" in lion.reason
    broken = sharpness(small(), np.full_like(x, np.nan), y)
    assert broken.lambda_max is None and "not finite" in str(broken)
    assert json.loads(json.dumps(broken.to_dict()))["lambda_max"] is None
    warm = sharpness(small(optimizer=keras.optimizers.SGD(0.0)), x, y)
    assert warm.ratio == 0.0 and warm.to_dict()["limit"] is None and warm.highest_learning_rate is None
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="Compile it first"):
        sharpness(model, x, y)
    with pytest.raises(ValueError, match="iterations=0"):
        sharpness(small(), x, y, iterations=0)
    with pytest.raises(TypeError, match=r"Dataset"):
        sharpness(small(), tf.data.Dataset.from_tensors((x, y)))


class RaisesInTraining(layers.Layer):
    def call(self, x, training=False):
        if training:
            raise RuntimeError("no training today")
        return x


def test_an_error_of_a_layer_is_told_without_the_places_it_came_through():
    found = sharpness(small(middle=[RaisesInTraining()]), *data())
    assert "RuntimeError" in found.reason and "no training today" in found.reason
    assert "File" not in found.reason and "\n" not in found.reason and ".py" not in found.reason


def test_the_words():
    high = Sharpness(lambda_max=28.0, limit=2.0, learning_rate=1.0, converged=True)
    assert high.ratio == 14 and "14 times the stability limit" in str(high)
    assert high.highest_learning_rate == pytest.approx(1 / 14)
    assert "fits" in str(Sharpness(lambda_max=1.0, limit=2.0, learning_rate=1.0, converged=True))
    assert str(Sharpness()).startswith("The curvature of the loss could not be had")


def test_lanczos_against_numpy():
    random = np.random.default_rng(0)
    for size in (1, 2, 7, 60):
        matrix = random.normal(size=(size, size))
        matrix = matrix + matrix.T
        values = np.linalg.eigvalsh(matrix)
        found = extreme_eigenvalues(lambda v, m=matrix: m @ v, random.normal(size=size), iterations=60, tolerance=1e-6)
        assert found.converged
        assert (found.largest, found.smallest) == pytest.approx((values[-1], values[0]), rel=0.02, abs=0.02)
    assert extreme_eigenvalues(lambda v: v * np.nan, np.ones(3)) is None
    assert extreme_eigenvalues(lambda v: 0 * v, np.ones(3)).largest == 0
    with pytest.raises(ValueError, match="not 0"):
        extreme_eigenvalues(lambda v: v, np.zeros(3))


@pytest.mark.nightly
def test_full_batch_descent_comes_to_rest_at_the_edge_of_stability():
    """METHODS, result 7: tanh 64-40-40-10, squared loss, 500 digits, rate .3; a lower rate leaves room for a time."""
    x, labels = digits(500)
    y = keras.utils.to_categorical(labels, 10).astype(np.float32)
    inputs, targets = tf.constant(x), tf.constant(y)

    def readings(rate: float, times: int) -> list[float]:
        keras.utils.set_random_seed(0)
        hidden = [layers.Dense(40, activation="tanh") for _ in range(2)]
        model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])
        model.compile(keras.optimizers.SGD(rate), loss="mse")
        weights = model.trainable_variables

        @tf.function
        def descend(steps):
            for _ in tf.range(steps):
                with tf.GradientTape() as tape:
                    loss = model.compute_loss(x=inputs, y=targets, y_pred=model(inputs, training=True))
                for weight, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
                    weight.assign_sub(rate * gradient)

        found = []
        for _ in range(times):
            descend(tf.constant(500))
            found.append(sharpness(model, x, y, batch_size=500, iterations=40))
        assert all(one.limit == pytest.approx(2 / rate) and one.converged for one in found)
        return [one.ratio for one in found]

    assert readings(0.3, 8)[-4:] == pytest.approx([1.0] * 4, abs=0.03)
    assert max(readings(0.05, 2)) < 0.6
