"""The probes in Keras: what they read, what they find where it is known, and that the model stays as it was."""

from __future__ import annotations

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import NETS, Subclassed, assert_same_state, compiled, digits, seeded, state, with_state

layers = keras.layers
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 50), momentum=0.9),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(gr.schedules.WarmUp(0.01, steps=5))
    ),
}


def find(model, x, y=None, **more):
    return gr.probes.learning_rate_range(model, x, y, batch_size=32, batches=30, **more)


def test_it_reads_the_loss_of_each_batch_at_its_own_rate():
    """Against the same hundred steps by hand, in numpy float64: a linear model, squared loss, SGD."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 3)).astype(np.float32), random.normal(size=(64, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(123.0), loss="mse", metrics=["mae"])
    weight = model.get_weights()[0].astype(np.float64)
    found = gr.probes.learning_rate_range(model, x, y, batch_size=64, lowest=1e-3, highest=0.3, batches=20)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 0.3, 20))
    for rate, loss in zip(found.rates, found.losses, strict=True):  # all samples are in each batch
        error = x @ weight - y
        assert loss == pytest.approx(np.mean(error**2), rel=1e-4)
        weight -= rate * 2 * x.T @ error / 64


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param("adam", marks=pytest.mark.slow), pytest.param("schedule", marks=pytest.mark.slow), "loss_scale"],
)
def test_the_model_is_as_before_and_trains_on_as_if_nothing_had_been(optimizer):
    x, y = digits(128)
    tried, other = (seeded(with_state, OPTIMIZERS[optimizer]()) for _ in range(2))
    for model in (tried, other):
        model.fit(x, y, epochs=1, shuffle=False, verbose=0)
    before, history, function = state(tried), tried.history, tried.train_function
    find(tried, x, y)
    for (name, value), old in zip(state(tried).items(), before.values(), strict=True):
        np.testing.assert_array_equal(value, old, err_msg=name)
    assert tried.history is history and tried.train_function is function and not tried.stop_training
    for model in (tried, other):
        model.fit(x, y, epochs=1, shuffle=False, verbose=0)
    assert_same_state(tried, other)


@pytest.mark.parametrize(
    "name",
    [
        "subclassed",
        "recurrent",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("unbuilt", "embedding", "shared")),
    ],
)
def test_models_of_every_kind(name):
    model = seeded(NETS[name], jit_compile=name == "subclassed", steps_per_execution=2)
    found = find(model, *digits(96))
    assert len(found.losses) <= 30 and found.losses[0] > 0
    assert model.steps_per_execution == 2
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
def test_a_recipe_model_is_probed_with_its_clipping(jit):
    """With every gradient clipped to norm c, plain SGD moves the weights by exactly rate * c each step."""
    x, y = digits(64)
    inputs = keras.Input((64,))
    outputs = layers.Dense(10)(layers.Dense(16, activation="relu")(inputs))
    model = gr.RecipeModel(inputs, outputs, clipping=gr.clipping.by_global_norm(1e-3))
    compiled(model, keras.optimizers.SGD(0.5), jit_compile=jit)
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    before = state(model)
    places = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            places.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))

    finder = gr.LearningRateFinder(batches=20, lowest=0.1, highest=10.0)
    model.fit(x, y, batch_size=64, epochs=20, callbacks=[finder, Watch()], verbose=0)
    moves = np.linalg.norm(np.diff(places, axis=0), axis=1)
    np.testing.assert_allclose(moves, 1e-3 * finder.result.rates[1:], rtol=1e-3)
    for value, old in zip(state(model).values(), before.values(), strict=True):
        np.testing.assert_array_equal(value, old)
    assert find(model, x, y).losses[0] > 0


def test_datasets_and_generators():
    x, y = digits(128)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    assert len(find(seeded(with_state), dataset).losses) > 10

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, place):
            return x[32 * place : 32 * place + 32], y[32 * place : 32 * place + 32]

    assert len(find(seeded(with_state), Batches()).losses) > 10


def test_it_stops_where_the_loss_explodes_and_finds_a_rate_that_trains():
    x, y = digits(512)
    model = compiled(
        keras.Sequential([keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(10)]),
        keras.optimizers.SGD(1e-5, momentum=0.9),
    )
    found = gr.probes.learning_rate_range(model, x, y, highest=1000.0)
    assert found.diverged_at is not None and found.diverged_at < 1000
    assert len(found.losses) < 100
    assert found.minimum_tenth < found.diverged_at / 10 and found.valley < found.diverged_at / 10
    model.optimizer.learning_rate = found.valley
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_an_error_in_the_middle_leaves_the_model_as_it_was():
    model = seeded(with_state)
    model.fit(*digits(64), epochs=1, verbose=0)
    before, function = state(model), model.train_function

    class Breaks(keras.utils.PyDataset):
        def __len__(self):
            return 9

        def __getitem__(self, place):
            if place == 5:
                raise OSError("the disk is gone")
            return digits(32)

    with pytest.raises(Exception, match="the disk is gone"):
        find(model, Breaks())
    for value, old in zip(state(model).values(), before.values(), strict=True):
        np.testing.assert_array_equal(value, old)
    assert model.train_function is function


def test_refusals_of_the_range_test():
    x, y = digits(64)
    with pytest.raises(ValueError, match="Compile it first"):
        find(keras.Sequential([keras.Input((64,)), layers.Dense(10)]), x, y)
    with pytest.raises(ValueError, match="batch_size=65"):
        gr.probes.learning_rate_range(seeded(with_state), x, y, batch_size=65)
    with pytest.raises(ValueError, match="lowest=0"):
        find(seeded(with_state), x, y, lowest=0)
    with pytest.raises(ValueError, match=r"number of samples.*\[63, 64\]"):
        find(seeded(with_state), x, y[:63])


# -- the same as a callback -------------------------------------------------------------------------------
def test_the_callback_reads_what_the_probe_reads_and_goes_back():
    x, y = digits(256)
    model = seeded(with_state, OPTIMIZERS["schedule"]())
    model.fit(x, y, epochs=1, shuffle=False, verbose=0)
    before, function = state(model), model.train_function
    finder = gr.LearningRateFinder(batches=30)
    history = model.fit(x, y, epochs=9, batch_size=32, shuffle=False, callbacks=[finder], verbose=0)
    assert history is model.history and len(history.epoch) <= 4
    for value, old in zip(state(model).values(), before.values(), strict=True):
        np.testing.assert_array_equal(value, old)
    assert model.train_function is function
    assert finder.result.losses.shape == finder.result.rates.shape
    again = gr.probes.learning_rate_range(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(32), batches=30)
    np.testing.assert_allclose(finder.result.losses, again.losses, rtol=1e-4)
    copy.deepcopy(finder)


def test_the_callback_goes_back_after_an_error():
    class Explodes(Subclassed):
        def train_step(self, data):
            logs = super().train_step(data)
            tf.debugging.Assert(self.optimizer.iterations < 5, ["enough"])
            return logs

    model = seeded(Explodes)
    x, y = digits(256)
    model(x[:2])
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match="enough"):
        model.fit(x, y, batch_size=16, callbacks=[gr.LearningRateFinder(batches=30)], verbose=0)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        seeded(with_state, steps_per_execution=2).fit(x, y, callbacks=[gr.LearningRateFinder()], verbose=0)


# -- noise scale --------------------------------------------------------------------------------------------
def linear_regression(samples=60_000, size=8, error=2.0, seed=0):
    """Return a model off by delta, its data, and the noise scale in closed form.

    With x ~ N(0, I) and residual noise of standard deviation s, a sample's gradient is 2 (x.delta - e) x: its mean is
    2 delta, and the trace of its covariance 4 ((d + 1) |delta|^2 + d s^2).
    """
    random = np.random.default_rng(seed)
    delta = random.normal(size=(size, 1)) / np.sqrt(size)
    x = random.normal(size=(samples, size)).astype(np.float32)
    y = (error * random.normal(size=(samples, 1))).astype(np.float32)
    model = keras.Sequential([keras.Input((size,)), layers.Dense(1, use_bias=False)])
    model.compile("sgd", loss="mse")
    model.set_weights([delta.astype(np.float32)])
    square = float(np.sum(delta**2))
    return model, x, y, 4 * square, 4 * ((size + 1) * square + size * error**2)


@pytest.mark.parametrize(
    "batch_size, micro",
    [(64, None), pytest.param(64, 32, marks=pytest.mark.slow), pytest.param(128, 1, marks=pytest.mark.slow)],
)
def test_the_noise_scale_of_a_linear_regression(batch_size, micro):
    model, x, y, signal, noise = linear_regression()
    batches = 150 if micro != 1 else 60
    found = gr.probes.noise_scale(model, x, y, batch_size=batch_size, micro_batch_size=micro, batches=batches)
    low, high = found.interval
    assert low * 0.85 < noise / signal < high * 1.15
    assert high < 2.2 * low
    error = found.noises.std() / np.sqrt(batches)
    assert abs(found.estimate.noise - noise) < 4 * error
    assert abs(found.estimate.signal - signal) < 4 * found.signals.std() / np.sqrt(batches)


@pytest.mark.parametrize(
    "name",
    ["with_state", "unbuilt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("embedding", "subclassed"))],
)
def test_the_noise_probe_leaves_the_model_as_it_was(name):
    x, y = digits(96)
    model = seeded(NETS[name])
    if name != "unbuilt":
        model.fit(x, y, epochs=1, verbose=0)
    before = state(model) if name != "unbuilt" else None
    found = gr.probes.noise_scale(model, x, y, batch_size=24, batches=3)
    assert np.isfinite(found.signals).all() and (found.noises > 0).all()
    if before is not None:
        for value, old in zip(state(model).values(), before.values(), strict=True):
            np.testing.assert_array_equal(value, old)
    assert found.to_dict()["advice"] == found.advice == str(found)


def test_the_parts_make_up_the_batch():
    """The gradient of a batch, from its parts, is that which Keras computes for the whole."""
    model, x, y, *_ = linear_regression(64)
    found = gr.probes.noise_scale(model, x, y, batch_size=32, micro_batch_size=1, batches=2, seed=3)
    order = np.random.default_rng(3).permutation(64)
    for place in range(2):
        chosen = order[32 * place : 32 * place + 32]
        each = 2 * (x[chosen] @ model.get_weights()[0] - y[chosen]) * x[chosen]  # a sample's gradient, by hand
        assert found.noises[place] == pytest.approx(np.sum(np.var(each, axis=0, ddof=1)), rel=1e-4)
        signal = np.sum(each.mean(0) ** 2) - found.noises[place] / 32
        assert found.signals[place] == pytest.approx(signal, rel=1e-3)


def test_the_advisor_follows_a_training_and_leaves_it_alone():
    x, y = digits(96)
    plain, advised = (seeded(with_state) for _ in range(2))
    advisor = gr.BatchSizeAdvisor(x, y, batch_size=32, batches=3, every=2)
    assert advisor.advice == "Nothing was measured yet."
    plain.fit(x, y, epochs=2, shuffle=False, verbose=0)
    advised.fit(x, y, epochs=2, shuffle=False, callbacks=[advisor], verbose=0)
    assert_same_state(plain, advised)
    assert sorted(advisor.measurements) == [1]
    assert advisor.advice.startswith("After epoch 2: Noise scale")
    copy.deepcopy(advisor)


def test_the_advisor_survives_a_gradient_that_is_not_finite(caplog):
    x, y = digits(64)
    x[3] = np.nan
    advisor = gr.BatchSizeAdvisor(x, y, batch_size=32, batches=2)
    seeded(with_state).fit(x, y, callbacks=[advisor], verbose=0)
    assert not advisor.measurements and "not finite" in caplog.text


@pytest.mark.parametrize(
    "error, arguments, words",
    [
        (ValueError, {"batch_size": 1}, "batch_size=1"),
        (ValueError, {"micro_batch_size": 5}, "divide"),
        (ValueError, {"batches": 1}, "batches=1"),
    ],
)
def test_refusals_of_the_noise_probe(error, arguments, words):
    with pytest.raises(error, match=words):
        gr.probes.noise_scale(seeded(with_state), *digits(64), **arguments)


def test_more_refusals_of_the_noise_probe():
    x, y = digits(64)
    with pytest.raises(TypeError, match="arrays"):
        gr.probes.noise_scale(seeded(with_state), tf.data.Dataset.from_tensor_slices((x, y)))
    with pytest.raises(ValueError, match="no loss yet"):
        gr.probes.noise_scale(with_state(), x, y)
    with pytest.raises(ValueError, match="not finite"):
        gr.probes.noise_scale(seeded(with_state), np.nan * x, y)
    with pytest.raises(ValueError, match="every=0"):
        gr.BatchSizeAdvisor(x, y, batch_size=8, every=0)
