"""Real Keras nets: no false alarm on sound ones, the alarm on a large one, and prescriptions that run."""

from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.engine import find
from tests import records

keras = pytest.importorskip("keras")


def dense(units=64, activation="relu", initializer="he_normal"):
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer)


def chain(depth, **arguments):
    return keras.Sequential([keras.Input((64,)), *[dense(**arguments) for _ in range(depth)], keras.layers.Dense(10)])


def normalized(depth):
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(depth):
        model.add(dense(activation=None, initializer=keras.initializers.RandomNormal(stddev=1.0)))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10))
    return model


def residual(blocks):
    inputs = x = keras.Input((64,))
    for _ in range(blocks):
        x = keras.layers.Add()([x, dense(activation=None)(dense()(x))])
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def convolutional():
    layers = [keras.layers.Conv2D(8, 3, padding="same", activation="relu") for _ in range(4)]
    tail = [keras.layers.MaxPooling2D(), keras.layers.Flatten(), dense(32, initializer="glorot_uniform")]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, *tail, keras.layers.Dense(10)])


def recurrent():
    layers = [keras.layers.LSTM(16, return_sequences=True), keras.layers.GRU(16), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8)), *layers])


NETS = {
    "he": lambda: chain(20),
    "glorot_tanh": lambda: chain(20, activation="tanh", initializer="glorot_uniform"),
    "orthogonal": lambda: chain(20, initializer=keras.initializers.Orthogonal(gain=2**0.5)),
    "batch_normalized_std_1": lambda: normalized(6),
    "residual": lambda: residual(10),
    "convolutional": convolutional,
    "recurrent": recurrent,
}


def forward_trace(model) -> Trace:
    """Record what a monitor would at step 0, forwards."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    trace = Trace(
        [layer.name for layer in layers],
        description=records.described({"layers": [described(layer) for layer in layers]}),
    )
    taps = keras.Model(model.inputs[0], [layer.output for layer in layers])
    shape = (32, *model.input_shape[1:])
    outputs = taps(np.random.default_rng(0).standard_normal(shape).astype("float32"), training=True)
    rms = [float(np.sqrt(np.mean(np.square(np.asarray(output, dtype=float))))) for output in outputs]
    norms = [np.sqrt(sum(float(np.sum(np.square(w))) for w in layer.get_weights())) or np.nan for layer in layers]
    trace.append(step=0, loss=2.3, gradient_norm=1.0)
    trace.extend_samples(step=[0], output_rms=[rms], weight_norm=[norms])
    return trace


def described(layer) -> dict:
    kernel = getattr(layer, "kernel", None)
    kernel = None if kernel is None else np.asarray(kernel.numpy())
    activation = getattr(layer, "activation", None)
    return {
        "name": layer.name,
        "kind": type(layer).__name__,
        "activation": "relu" if isinstance(layer, keras.layers.ReLU) else getattr(activation, "__name__", None),
        "fan_in": None if kernel is None else int(np.prod(kernel.shape[:-1])),
        "units": None if kernel is None else int(kernel.shape[-1]),
        "weight_std": None if kernel is None else float(kernel.std()),
        "parameters": layer.count_params(),
    }


@pytest.mark.parametrize("name", NETS)
def test_no_false_alarm(name):
    assert find(forward_trace(NETS[name]())) == []


def test_the_alarm_and_prescriptions_that_run():
    model = chain(12, initializer=keras.initializers.RandomNormal(stddev=0.35))
    (finding,) = find(forward_trace(model))
    assert finding.code == "exploding_initialization"
    names = {"model": model}
    model.compile(loss="mean_squared_error")
    for prescription in finding.prescriptions:
        exec(compile(prescription.code, prescription.title, "exec"), names)
    inputs = keras.Input((64,))
    healed = keras.Model(inputs, keras.layers.Dense(10)(names["hidden"](inputs)))
    assert sum(isinstance(layer, keras.layers.Dense) for layer in healed.layers) in (13, 14)
    assert find(forward_trace(healed)) == []
    assert model.optimizer.global_clipnorm == 1.0


def test_the_prescriptions_for_a_rate_run(trace_of, trace_of_losses):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss="mean_squared_error")
    unknown_rate = trace_of_losses(2.3 * 1.05 ** np.arange(120), update=0.4)
    unknown_rate.description = records.described({})
    for trace in (trace_of("rate_3_adam"), unknown_rate):
        for prescription in find(trace)[0].prescriptions:
            exec(compile(prescription.code, prescription.title, "exec"), {"model": model})
    assert float(model.optimizer.learning_rate.numpy()) > 0
