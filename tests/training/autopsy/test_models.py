"""The autopsy on the kinds of models that people have: nested, recurrent, with several inputs, odd or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.core.trace.autopsy import OffenderKind
from gradrecipes.training.autopsy import autopsy
from tests.training.nets import (
    Apply,
    assert_same_state,
    compiled,
    digits,
    recurrent,
    seeded,
    state,
    two_dense,
    with_state,
)

layers, ops = keras.layers, keras.ops
SIZE = 12


def inverse(name: str) -> layers.Layer:
    return Apply(lambda x: x / ops.max(ops.abs(x), axis=-1, keepdims=True), name=name)


def unchanged(model, before) -> bool:
    after = state(model)
    return all(np.array_equal(after[name], before[name]) for name in before)


# -- structures -----------------------------------------------------------------------------------
def test_an_input_in_a_nested_structure_is_named_by_its_path():
    pixels, size = keras.Input((64,), name="pixels"), keras.Input((1,), name="size")
    joined = layers.concatenate([layers.Dense(8)(pixels), size])
    model = keras.Model({"pixels": pixels, "size": size}, [layers.Dense(10)(joined), layers.Dense(1)(joined)])
    model.compile("adam", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"])
    x, y = digits(SIZE)
    structure = {"pixels": x, "size": np.ones((SIZE, 1), np.float32)}
    labels = [y, np.ones((SIZE, 1), np.float32)]
    assert autopsy(model, (structure, labels)).healthy
    structure["size"][9] = np.inf
    first = autopsy(model, (structure, labels)).first
    assert (first.kind, first.name, first.samples) == (OffenderKind.INPUT, "x['size']", (9,))
    structure["size"][9] = 1
    labels[1][2] = np.nan
    first = autopsy(model, (structure, labels)).first
    assert (first.kind, first.name, first.samples) == (OffenderKind.TARGET, "y[1]", (2,))


def test_a_layer_within_a_nested_model_is_blamed_not_the_model():
    inner = keras.Sequential([keras.Input((64,)), inverse("deep"), layers.Dense(8)], name="inner")
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), inner, layers.Dense(10)]))
    x, y = digits(SIZE)
    x[8] = 0
    result = autopsy(model, (x, y))
    assert [(one.kind, one.layer, one.samples) for one in result.offenders] == [
        (OffenderKind.LAYER_OUTPUT, "deep", (8,))
    ]
    assert {"deep", "inner"} <= {reading.layer for reading in result.layers}


def test_layers_of_one_name_are_told_apart_by_their_paths():
    def half(name):
        return keras.Sequential([keras.Input((64,)), layers.Dense(64, name="twin")], name=name)

    model = seeded(lambda: keras.Sequential([keras.Input((64,)), half("left"), half("right"), layers.Dense(10)]))
    right = model.get_layer("right").get_layer("twin")
    kernel = right.kernel.numpy()
    kernel[1, 2] = np.nan
    right.kernel.assign(kernel)
    first = autopsy(model, digits(SIZE)).first
    assert first.layer == right.path
    assert first.layer != model.get_layer("left").get_layer("twin").path


def test_the_time_step_of_a_recurrent_net_is_told():
    class Cell(layers.SimpleRNNCell):
        def call(self, x, states, training=False):
            output, states = super().call(x, states, training=training)
            output /= ops.cast(ops.any(x != 0, axis=-1, keepdims=True), x.dtype)
            return output, [output]

    def make():
        rows = layers.Reshape((8, 8))
        return keras.Sequential(
            [keras.Input((64,)), rows, layers.RNN(Cell(4, name="cell"), name="rnn"), layers.Dense(10)]
        )

    model = seeded(make)
    x, y = digits(SIZE)
    x += 0.01
    assert autopsy(model, (x, y)).healthy
    x.reshape(SIZE, 8, 8)[6, 5] = 0
    first = autopsy(model, (x, y)).first
    assert (first.kind, first.layer, first.samples) == (OffenderKind.LAYER_OUTPUT, "cell", (6,))
    assert "time step 5 " in first.sentence


def test_a_masked_recurrent_net_gets_its_mask():
    model = seeded(recurrent)
    x, y = digits(SIZE)
    result = autopsy(model, (x, y))
    assert result.loss == pytest.approx(float(model.compute_loss(y=y, y_pred=model(x, training=True))), rel=1e-5)


def test_an_embedding_with_whole_numbers_names_the_samples_of_a_broken_row():
    model = seeded(
        lambda: keras.Sequential(
            [keras.Input((6,), dtype="int32"), layers.Embedding(20, 4), layers.GlobalMaxPooling1D(), layers.Dense(10)]
        )
    )
    x = np.random.default_rng(0).integers(0, 19, (SIZE, 6)).astype(np.int32)
    y = np.arange(SIZE) % 10
    assert autopsy(model, (x, y)).healthy
    x[7, 2] = 19
    table = model.layers[0].embeddings.numpy()
    table[19, 1] = np.nan
    model.layers[0].embeddings.assign(table)
    result = autopsy(model, (x, y))
    assert (result.first.kind, result.first.entries) == (OffenderKind.WEIGHT, ((19, 1),))
    assert [sample for sample, loss in enumerate(result.sample_losses) if not np.isfinite(loss)] == [7]


def test_an_index_beyond_an_embedding_is_told_in_the_notes():
    model = seeded(
        lambda: keras.Sequential(
            [keras.Input((6,), dtype="int32"), layers.Embedding(20, 4), layers.Flatten(), layers.Dense(10)]
        )
    )
    x = np.full((SIZE, 6), 25, np.int32)
    before = state(model)
    result = autopsy(model, (x, np.zeros(SIZE, int)))
    assert unchanged(model, before)
    assert any("forward pass could not be run, in embedding" in note for note in result.notes)
    assert "did not run to its end" in str(result)
    assert "\x1b" not in str(result)


def test_sparse_and_ragged_inputs_name_their_samples():
    x, y = digits(SIZE)
    x[5, 3] = np.nan
    sparse = tf.sparse.from_dense(x)
    model = seeded(lambda: keras.Sequential([keras.Input((64,), sparse=True), layers.Dense(10)]))
    first = autopsy(model, (sparse, y)).first
    assert (first.kind, first.samples) == (OffenderKind.INPUT, (5,))
    ragged = tf.ragged.constant([[1.0], [], [2.0, np.nan], [3.0]])
    first = autopsy(model, (ragged, y[:4])).first
    assert (first.kind, first.samples) == (OffenderKind.INPUT, (2,))


# -- ways to train --------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 4}])
def test_the_mode_of_the_training_makes_no_difference(how):
    model = seeded(two_dense, **how)
    x, y = digits(32)
    model.fit(x, y, batch_size=8, verbose=0)
    before = state(model)
    x[5, 5] = np.nan
    first = autopsy(model, (x[:SIZE], y[:SIZE])).first
    assert (first.kind, first.samples, first.entries) == (OffenderKind.INPUT, (5,), ((5, 5),))
    assert unchanged(model, before)


def test_dropout_falls_as_in_the_step_itself_if_the_seeds_are_given():
    model = seeded(lambda: keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), layers.Dense(10)]))
    x, y = digits(SIZE)
    before = [v.numpy() for v in model.variables]
    loss = float(model.compute_loss(y=y, y_pred=model(x, training=True)))
    assert autopsy(model, (x, y)).loss != pytest.approx(loss, rel=1e-4)
    assert autopsy(model, (x, y), weights=before).loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        lambda: keras.optimizers.RMSprop(0.01),
        lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=2),
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion(0.001)),
    ],
)
def test_the_trial_update_leaves_no_trace_in_any_optimizer(optimizer):
    model = seeded(two_dense, optimizer())
    x, y = digits(32)
    model.fit(x, y, batch_size=8, verbose=0)
    before = state(model)
    result = autopsy(model, (x[:SIZE], y[:SIZE]))
    assert result.healthy
    assert result.notes == ()
    assert unchanged(model, before)


@pytest.mark.slow
def test_within_a_monitored_fit_it_changes_nothing_of_the_training():
    x, y = digits(64)
    found = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            bad = x[:SIZE].copy()
            bad[batch, 1] = np.nan
            found.append(autopsy(self.model, (bad, y[:SIZE])))

    ends = []
    for looks in ([], [Looks()]):
        model = seeded(with_state)
        callbacks = [gr.GradientMonitor(), gr.GradientGuard(), *looks]
        history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        ends.append((model, history.history["loss"]))
    assert [one.first.samples for one in found] == [(0,), (1,), (2,), (3,)] * 2
    assert ends[0][1] == ends[1][1]
    assert_same_state(ends[0][0], ends[1][0])


REPLICAS = """
import numpy as np, tensorflow as tf
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
from gradrecipes.training.autopsy import autopsy
from tests.training.nets import digits, seeded, with_state

def everything():
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(copy) for one in variables for copy in getattr(one.value, "values", [one.value])]

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = seeded(with_state)
x, y = digits(32)
model.fit(x, y, batch_size=16, verbose=0)
before = everything()
x[3, 4] = np.nan
first = autopsy(model, (x[:12], y[:12])).first
assert (first.kind.value, first.entries) == ("input", ((3, 4),)), first
assert len(before) > len(model.variables)
assert all(np.array_equal(a, b) for a, b in zip(before, everything(), strict=True))
"""


@pytest.mark.slow
def test_the_copies_on_all_replicas_stay_as_they_were():
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", REPLICAS], env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


# -- odd models -----------------------------------------------------------------------------------
def test_a_train_step_of_its_own_is_noted():
    class Own(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = seeded(lambda: Own([keras.Input((64,)), layers.Dense(10)]))
    x, y = digits(SIZE)
    x[4, 4] = np.inf
    result = autopsy(model, (x, y))
    assert result.first.samples == (4,)
    assert any("train_step of its own" in note for note in result.notes)


def test_a_model_without_a_call_still_shows_its_weights_and_batch():
    class Gan(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = two_dense()

        def train_step(self, data):
            return {}

    model = Gan()
    model.compile(optimizer="adam")
    x, _ = digits(SIZE)
    x[3, 3] = np.nan
    result = autopsy(model, x)
    assert (result.first.kind, result.first.samples) == (OffenderKind.INPUT, (3,))
    assert any("forward pass could not be run" in note for note in result.notes)


def test_a_model_that_is_not_compiled_or_not_built_is_noted():
    model = keras.Sequential([layers.Dense(8), layers.Dense(10)])
    x, y = digits(SIZE)
    result = autopsy(model, (x, y))
    assert not result.complete
    assert not result.healthy
    assert result.offenders == ()
    assert len(result.layers) == 2
    assert any("not compiled" in note for note in result.notes)
    assert any("no weights yet" in note for note in result.notes)


def test_a_frozen_model_and_an_empty_batch_raise_nothing():
    model = two_dense()
    model.trainable = False
    compiled(model)
    assert autopsy(model, digits(SIZE)).healthy
    x, y = digits(SIZE)
    assert autopsy(model, (x[:0], y[:0])).offenders == ()


def test_a_layer_that_gives_strange_structures_is_heard():
    class Strange(layers.Layer):
        def call(self, x, scale=None, training=None):
            return {"twice": 2 * x, "parts": (x[:, :3], None), "count": tf.shape(x)[0]}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="strange_model")
            self.strange, self.out = Strange(name="strange"), layers.Dense(10)

        def call(self, x):
            parts = self.strange(x, scale=3)
            return self.out(parts["twice"] / ops.max(parts["twice"], axis=1, keepdims=True))

    model = seeded(Model)
    x, y = digits(SIZE)
    assert autopsy(model, (x, y)).healthy
    x[11] = 0
    first = autopsy(model, (x, y)).first
    assert (first.layer, first.samples) == ("strange_model", (11,))


def test_a_layer_in_a_traced_function_does_not_disturb():
    class Traced(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(8)

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return tf.map_fn(lambda row: self.inner(row[None])[0], x)

    model = seeded(lambda: keras.Sequential([keras.Input((64,)), Traced(name="traced"), layers.Dense(10)]))
    x, y = digits(SIZE)
    assert autopsy(model, (x, y)).healthy
    x[2, 2] = np.nan
    assert autopsy(model, (x, y)).first.samples == (2,)


def test_it_says_so_when_it_is_called_in_a_graph():
    model = seeded(two_dense)
    x, y = digits(SIZE)

    @tf.function
    def traced():
        autopsy(model, (x, y))

    with pytest.raises(RuntimeError, match=r"outside of tf\.function"):
        traced()
