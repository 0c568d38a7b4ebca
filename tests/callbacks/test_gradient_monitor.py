"""The monitor: what it says is what an independent tape says, and the training is what it would have been."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import (
    NETS,
    Subclassed,
    assert_same_state,
    deterministic,
    digits,
    layers,
    seeded,
    shared,
    two_dense,
    with_state,
)

BATCH = 32
PARTS = ("query", "key", "value", "attention_output")  # a variable counts for the smallest layer that holds it
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, x, y, *callbacks, epochs=1, **how):
    how = {"batch_size": BATCH, "shuffle": False, **how}
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), **how)


def norm64(tensors) -> float:
    dense = [np.asarray(tf.convert_to_tensor(t), np.float64) for t in tensors if t is not None]
    return float(np.sqrt(sum(np.sum(np.square(t)) for t in dense)))


class Witness(keras.callbacks.Callback):
    """Recompute loss and gradients of the coming batch with a tape, for nets without randomness."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.seen = x, y, []

    def on_train_batch_begin(self, batch, logs=None):
        x, y = (part[batch * BATCH : (batch + 1) * BATCH] for part in (self.x, self.y))
        before = [w.copy() for w in self.model.get_weights()]
        with tf.GradientTape() as tape:
            loss = LOSS(y, self.model(x, training=True))
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        owners = {id(v): layer.name for layer in self.model.layers for v in layer.trainable_variables}
        by_layer = {}
        for variable, gradient in zip(variables, gradients, strict=True):
            by_layer.setdefault(owners[id(variable)], []).append(gradient)
        self.seen.append(
            {
                "loss": float(loss),
                "norm": norm64(gradients),
                "by_layer": {name: norm64(parts) for name, parts in by_layer.items()},
                "before": before,
            }
        )

    def on_train_batch_end(self, batch, logs=None):
        self.seen[-1]["after"] = [w.copy() for w in self.model.get_weights()]


def assert_witnessed(trace, witness, *, rtol=1e-5):
    seen = witness.seen
    np.testing.assert_allclose(trace.loss, [s["loss"] for s in seen], rtol=rtol)
    np.testing.assert_allclose(trace.gradient_norm, [s["norm"] for s in seen], rtol=rtol)
    for name in seen[0]["by_layer"]:
        columns = [trace.layers.index(part) for part in PARTS if part in trace.layers and "attention" in name]
        columns = columns or [trace.layers.index(name)]
        column = np.sqrt(np.square(trace.layer_gradient_norm[:, columns]).sum(axis=1))
        np.testing.assert_allclose(column, [s["by_layer"][name] for s in seen], rtol=rtol, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["with_state", "functional", "subclassed"])
def test_the_training_is_to_the_bit_what_it_would_have_been(net):
    x, y = digits(160)
    plain, monitored, watched = (seeded(NETS[net]) for _ in range(3))
    with deterministic(rewrites=net != "with_state"):
        histories = []
        for model, callbacks in (
            (plain, []),
            (monitored, [gr.GradientMonitor(sample_every=4)]),
            (watched, [gr.GradientMonitor(sample_every=4), gr.GradientGuard()]),
        ):
            keras.utils.set_random_seed(2)
            histories.append(fit(model, x, y, *callbacks, epochs=2).history)
    assert_same_state(monitored, plain)
    assert_same_state(watched, plain)
    for history in histories[1:]:
        assert {name: history[name] for name in histories[0]} == histories[0]

    for owner in (lambda m: m, lambda m: m.optimizer, *(lambda m, i=i: m.layers[i] for i in range(len(plain.layers)))):
        assert owner(monitored).__dict__.keys() == owner(plain).__dict__.keys()
    assert "gradient_norm" not in fit(monitored, x, y).history


def every_kind() -> keras.Model:
    """Return a net with a part of each kind: embedding, recurrent, attention, called twice, frozen."""
    inputs = keras.Input((64,))
    rows = layers.Reshape((8, 8))(inputs)
    attended = layers.LayerNormalization()(rows + layers.MultiHeadAttention(2, 4, name="attention")(rows, rows))
    twice = layers.Dense(8, activation="tanh", name="twice")
    tokens = layers.Embedding(20, 4, name="embedding")(layers.Rescaling(16.0)(inputs))
    parts = [
        layers.GlobalAveragePooling1D()(tokens),
        layers.LSTM(6, name="recurrent")(layers.Masking(0.0)(rows)),
        layers.Flatten()(attended),
        twice(twice(layers.Dense(8, name="frozen", trainable=False)(inputs))),
    ]
    return keras.Model(inputs, layers.Dense(10)(layers.concatenate(parts)))


@pytest.mark.parametrize(
    ("net", "optimizer"),
    [
        (every_kind, {}),
        pytest.param(Subclassed, {"loss_scale_factor": 256.0}, marks=pytest.mark.slow),
        (two_dense, {"global_clipnorm": 0.1}),
    ],
)
def test_norms_and_losses_are_those_of_an_independent_tape(net, optimizer):
    x, y = digits(112)  # the last batch is a half
    model = seeded(net, keras.optimizers.Adam(0.01, **optimizer))
    model(x[:1])
    monitor, witness = gr.GradientMonitor(sample_every=2), Witness(x, y)
    fit(model, x, y, monitor, witness)
    assert_witnessed(monitor.trace, witness, rtol=3e-5 if net is every_kind else 1e-5)
    assert monitor.trace.steps["batch"].tolist() == [0, 1, 2, 3]


def test_the_readings_of_a_sample_are_those_of_an_independent_tape():
    x, y = digits(96)
    model = seeded(two_dense, keras.optimizers.SGD(0.1, momentum=0.9))
    monitor, witness = gr.GradientMonitor(sample_every=1), Witness(x, y)
    fit(model, x, y, monitor, witness)
    samples, trace = monitor.trace.samples, monitor.trace
    assert samples["step"].tolist() == [0, 1, 2]
    twin = seeded(two_dense)
    for step, seen in enumerate(witness.seen):
        twin.set_weights(seen["before"])
        part = slice(step * BATCH, (step + 1) * BATCH)
        with tf.GradientTape(persistent=True) as tape:
            hidden = twin.layers[0](x[part])
            tape.watch(hidden)
            out = twin.layers[1](hidden)
            tape.watch(out)
            loss = LOSS(y[part], out)
        for column, output in enumerate((hidden, out)):
            kernel, bias = twin.layers[column].kernel, twin.layers[column].bias
            gradients = [g.numpy() for g in tape.gradient(loss, [kernel, bias])]
            entries = np.concatenate([g.ravel() for g in gradients])
            before = norm64(seen["before"][2 * column : 2 * column + 2])
            moved = [a.astype(np.float64) - b for a, b in zip(seen["after"], seen["before"], strict=True)]
            update = norm64(moved[2 * column : 2 * column + 2])
            expected = {
                "output_rms": np.sqrt(np.mean(np.square(output.numpy(), dtype=np.float64))),
                "output_gradient_norm": norm64([tape.gradient(loss, output)]),
                "weight_norm": before,
                "update_norm": update,
                "update_ratio": update / before,
                "gradient_max": np.abs(entries).max(),
                "zero_share": np.mean(entries == 0),
                "nonfinite_share": 0.0,
            }
            for name, value in expected.items():
                np.testing.assert_allclose(samples[name][step, column], value, rtol=1e-4, atol=1e-7, err_msg=name)
            assert samples["histogram"][step, column].sum() == np.count_nonzero(entries)
    assert trace.description.layers[0].fan_in == 64


def test_under_mixed_float16_the_readings_are_unscaled():
    x, y = digits(96)
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = seeded(two_dense, keras.optimizers.SGD(0.1))
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    monitor = gr.GradientMonitor()
    fit(model, x, y, monitor)
    plain, reference = seeded(two_dense, keras.optimizers.SGD(0.1)), gr.GradientMonitor()
    fit(plain, x, y, reference)
    np.testing.assert_allclose(monitor.trace.gradient_norm, reference.trace.gradient_norm, rtol=0.02)
    name = "output_gradient_norm"
    np.testing.assert_allclose(monitor.trace.samples[name], reference.trace.samples[name], rtol=0.05)


@pytest.fixture(scope="module")
def in_a_graph():
    """The trace of a training whose steps run one by one in a graph."""
    monitor = gr.GradientMonitor(sample_every=4)
    fit(seeded(two_dense), *digits(150), monitor, epochs=2)
    return monitor.trace


@pytest.mark.parametrize(
    "how",
    [{"run_eagerly": True}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow), {"steps_per_execution": 8}],
    ids=str,
)
def test_however_the_step_is_run_the_record_is_the_same(how, in_a_graph):
    monitor = gr.GradientMonitor(sample_every=4)
    # Eight steps at once do not divide the five of an epoch.
    fit(seeded(two_dense, **how), *digits(150), monitor, epochs=2)
    for name in ("step", "epoch", "batch", "outcome"):
        np.testing.assert_array_equal(monitor.trace.steps[name], in_a_graph.steps[name])
    for name in ("loss", "gradient_norm", "layer_gradient_norm"):
        np.testing.assert_allclose(monitor.trace.steps[name], in_a_graph.steps[name], rtol=1e-3, atol=1e-6)
    assert set(in_a_graph.samples["step"]) <= set(monitor.trace.samples["step"])


def test_samples_of_long_executions_are_not_lost():
    x, y = digits(256)
    monitor = gr.GradientMonitor()
    fit(seeded(two_dense, steps_per_execution=64), x, y, monitor, batch_size=2, epochs=2)
    assert len(monitor.trace) == 256
    assert {0, 1, 2, 100, 200} <= set(monitor.trace.samples["step"].tolist())


def test_generators_partial_batches_and_second_fits_are_counted_right():
    x, y = digits(112)

    def batches():
        for start in range(0, 112, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    signature = (tf.TensorSpec((None, 64), tf.float32), tf.TensorSpec((None,), tf.int64))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    model, monitor = seeded(Subclassed), gr.GradientMonitor()
    for callbacks in ([], [monitor], [monitor]):
        traces = model.python_calls
        with pytest.warns(UserWarning, match="ran out of data"):  # so says Keras, monitored or not, of unknown sizes
            model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
    assert model.python_calls == traces
    steps = monitor.trace.steps
    assert steps["step"].tolist() == list(range(16))
    assert steps["epoch"].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert steps["batch"].tolist() == [0, 1, 2, 3] * 4


def test_a_layer_that_is_called_twice_has_one_name_and_its_first_output():
    monitor = gr.GradientMonitor()
    fit(seeded(shared), *digits(32), monitor)
    assert len(monitor.trace.layers) == len(set(monitor.trace.layers))
    assert np.isfinite(monitor.trace.samples["output_rms"][0, monitor.trace.layers.index("shared")])


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "50"])
def test_a_wrong_interval_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"`sample_every` must be a whole number, .*Received: sample_every=.*None suits"
    ):
        gr.GradientMonitor(sample_every=bad)


def test_a_layer_without_weights_has_no_gradient_norm():
    x, y = digits(64)
    model, monitor = seeded(with_state), gr.GradientMonitor()
    fit(model, x, y, monitor)
    described = {layer.kind: layer for layer in monitor.trace.description.layers}
    assert described["Dropout"].parameters == 0
    column = monitor.trace.layers.index(described["Dropout"].name)
    assert np.isnan(monitor.trace.layer_gradient_norm[:, column]).all()


@pytest.mark.parametrize("metrics", [None, ["accuracy"]])
def test_the_loss_of_a_model_whose_outputs_are_a_list_of_one_is_the_mean_over_the_batch(metrics):
    x, y = digits(96)
    inputs = keras.Input((64,))
    model = keras.Model([inputs], [keras.layers.Dense(10)(inputs)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics)
    monitor = gr.GradientMonitor()
    model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[monitor])
    logits = model.predict(x, verbose=0)
    expected = np.asarray(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)).reshape(3, 32)
    np.testing.assert_allclose(monitor.trace.loss, expected.mean(axis=1), rtol=1e-5)
