"""What the logs of an epoch hold of the gradient norms: the mean and the largest of its updates."""

import keras
import numpy as np
import pytest

import gradrecipes as gr

KEYS = ("gradient_norm", "gradient_norm_max")


def net(**arguments):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", **arguments)
    return model


def data():
    generator = np.random.default_rng(1)
    return generator.normal(size=(60, 4)).astype("float32"), generator.normal(size=(60, 1)).astype("float32")


class BatchLogs(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([logs[key] for key in KEYS])


@pytest.mark.parametrize(
    "arguments", [{}, {"steps_per_execution": 3}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)]
)
def test_the_logs_hold_mean_and_maximum_of_the_epoch(arguments):
    monitor, batches = gr.GradientMonitor(), BatchLogs()
    history = net(**arguments).fit(
        *data(), batch_size=5, epochs=3, verbose=0, validation_split=0.2, callbacks=[monitor, batches]
    )
    norms = monitor.trace.gradient_norm.reshape(3, -1)
    np.testing.assert_allclose(history.history["gradient_norm"], norms.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(history.history["gradient_norm_max"], norms.max(axis=1), rtol=1e-6)
    if not arguments.get("steps_per_execution"):
        of_first = [[norms[0, : n + 1].mean(), norms[0, : n + 1].max()] for n in range(norms.shape[1])]
        np.testing.assert_allclose(batches.seen[: norms.shape[1]], of_first, rtol=1e-6)


def test_skipped_steps_do_not_count():
    x, y = data()
    x[7] = np.nan
    monitor = gr.GradientMonitor()
    history = net().fit(x, y, batch_size=5, shuffle=False, verbose=0, callbacks=[monitor, gr.GradientGuard()])
    norms = monitor.trace.gradient_norm[~monitor.trace.skipped]
    assert len(norms) == 11
    assert history.history["gradient_norm"] == [pytest.approx(norms.mean(), rel=1e-6)]
    assert history.history["gradient_norm_max"] == [pytest.approx(norms.max(), rel=1e-6)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_without_a_guard_a_norm_that_is_not_finite_shows(jit_compile):
    x, y = data()
    x[7] = np.nan
    history = net(jit_compile=jit_compile).fit(x, y, batch_size=5, verbose=0, callbacks=[gr.GradientMonitor()])
    assert all(np.isnan(history.history[key][0]) for key in KEYS)


def test_the_means_of_a_recipe_model_begin_anew_with_its_metrics():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    model = gr.RecipeModel(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = data()
    norms = []
    for rows in (slice(0, 9), slice(9, 60), slice(0, 9)):
        model.reset_metrics()  # as Keras does by itself, but for 3.7
        logs = model.train_on_batch(x[rows], y[rows], return_dict=True)
        assert logs["gradient_norm"] == logs["gradient_norm_max"]
        norms.append(logs["gradient_norm"])
    assert norms[0] != norms[1]
    assert norms[0] == norms[2]
