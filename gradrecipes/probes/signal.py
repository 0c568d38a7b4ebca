"""See what a net does to a signal: every layer's outputs and output gradients on one real batch."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import has_own_train_step, holds_layers, sublayers
from gradrecipes.core.signal_theory import ACTIVATIONS, forward_gain
from gradrecipes.core.trace.probes import FailureReading, ForwardPassReading, LayerSignal, SignalReading, WeightScale
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.training.description.model_graph import describe_layer
from gradrecipes.training.recovery.model_state import preserves_state
from gradrecipes.training.step.capture import ActivationCapture
from gradrecipes.training.trial_data import TrialData, essence, first_samples, named

logger = logging.getLogger(__name__)


ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)
QUANTILES = 512  # quantiles of a standard normal, so that nothing is drawn
TENFOLD = 10.0


def activation_response(layer: keras.layers.Layer) -> tuple[float | None, float | None]:
    """Return (exponent, gain) of a layer's own activation, or (None, None) where it has none.

    With z ~ N(0, 1) and r(s) = sqrt(E[phi(s z)^2]): the gain is r(1); the exponent is log10(r(10) / r(1)), which is
    1 for what grows in proportion (ReLU, linear), 0 for what is bounded (tanh), and above 1 for what blows up
    (a square has 2, an exponential far more). Infinite where r(10) overflows float32.
    """
    function = _function_of(layer)
    if function is None:
        return None, None
    try:
        one, ten = (_output_rms(function, scale) for scale in (1.0, TENFOLD))
    except Exception:  # an activation that wants a certain shape, or a layer that is not built
        return None, None
    if not one > 0:
        return None, None
    return (math.log10(ten / one) if math.isfinite(ten) else math.inf), one


def _function_of(layer: keras.layers.Layer) -> Callable[[Any], Any] | None:
    if isinstance(layer, ACTIVATION_LAYERS):
        return layer.__call__ if not isinstance(layer, keras.layers.PReLU) else None
    function = getattr(layer, "activation", None)
    named = getattr(function, "__name__", "")
    return function if callable(function) and named not in ("linear", "softmax", "log_softmax", "sparsemax") else None


def _output_rms(function: Callable[[Any], Any], scale: float) -> float:
    values = np.asarray(function(keras.ops.convert_to_tensor(scale * _quantiles()))).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(values))))


@functools.cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([[normal.inv_cdf((place + 0.5) / QUANTILES) for place in range(QUANTILES)]], np.float32)


SAMPLES = 256  # of a batch; shares of units are known to a percent by then
CELLS_AT_MOST = 4_000_000  # entries of an output that are looked at; a larger one is thinned out
BOUNDS = {  # activation: (lowest, highest output, distance from a bound within which the slope is below a tenth)
    "tanh": (-1.0, 1.0, 0.05),
    "sigmoid": (0.0, 1.0, 0.025),
    "hard_sigmoid": (0.0, 1.0, 0.0),
    "hard_tanh": (-1.0, 1.0, 0.0),
    "softsign": (-1.0, 1.0, 0.3),
    "relu6": (-np.inf, 6.0, 0.0),
}
DEAD_KINDS = {"relu", "relu6"}


def signal(model: keras.Model, batch: Any, *, attention: AttentionProbe | None = None) -> SignalReading:
    """Return what every layer puts out on a batch, and the gradient that comes back to it; no training.

    Args:
        model: A compiled, built model. It is left as it was.
        batch: What `train_step` gets.
        attention: Reads the attention of the model; None where that is not wanted.
    """
    x, y, sample_weight = (first_samples(part, SAMPLES) for part in keras.utils.unpack_x_y_sample_weight(batch))
    captured, value, error = _passed(model, x, y, sample_weight)
    read = tuple(_reading(layer, entered, output, gradient) for layer, entered, (output, gradient) in captured)
    return SignalReading(read, () if attention is None else attention.read(x), weight_scales(model), value, error)


@preserves_state
def _passed(
    model: keras.Model, x: Any, y: Any, sample_weight: Any
) -> tuple[list[tuple[Any, ...]], float | None, str | None]:
    """Return what a pass forwards and back captured of each layer, its loss, and the error that ended it."""
    capture, value, failure = ActivationCapture(model), None, None
    with capture.installed(), capture.capturing():
        try:
            with tf.GradientTape() as tape:
                outputs = model(x, training=True)
                loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
            tape.gradient(loss, model.trainable_weights)
            value = float(loss)
        except Exception as raised:  # a subclassed model may do in its train step what its call alone cannot
            failure = named(raised)
    return list(zip(capture.layers(), capture.inputs(), capture.tensors(), strict=True)), value, failure


def _reading(layer: keras.layers.Layer, entered: Any, output: tf.Tensor, gradient: Any) -> LayerSignal:
    described = describe_layer(layer)
    values = _array(output)
    finite = values[np.isfinite(values)]
    incoming = None if entered is None else _array(entered)
    exponent, gain = activation_response(layer)
    return LayerSignal(
        name=layer.name,
        kind=described.kind,
        activation=described.activation,
        dtype=output.dtype.name,
        input_rms=None if incoming is None else _rms(incoming[np.isfinite(incoming)]),
        output_rms=_rms(finite),
        output_mean=float(finite.mean()) if finite.size else None,
        output_max=float(np.abs(finite).max()) if finite.size else None,
        nonfinite_share=1.0 - finite.size / max(values.size, 1),
        zero_share=float((values == 0).mean()) if values.size else None,
        dead_share=_dead_share(values, described.activation),
        saturated_share=_saturated_share(values, described.activation),
        output_gradient_norm=None if gradient is None else _norm(_array(gradient, whole=True)),
        activation_exponent=exponent,
        activation_gain=gain,
    )


def _array(tensor: Any, *, whole: bool = False) -> np.ndarray:
    if isinstance(tensor, tf.IndexedSlices):
        tensor = tensor.values
    size = int(tf.size(tensor))
    if size > CELLS_AT_MOST and not whole:
        tensor = tensor[: max(1, int(tensor.shape[0] * CELLS_AT_MOST / size))]
    return np.asarray(tensor).astype(np.float64)


def _rms(values: np.ndarray) -> float | None:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(values)))) if values.size else None


def _norm(values: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(values))))


def _dead_share(values: np.ndarray, activation: str | None) -> float | None:
    if activation not in DEAD_KINDS or values.ndim < 2:
        return None
    return float((values == 0).all(axis=tuple(range(values.ndim - 1))).mean())


def _saturated_share(values: np.ndarray, activation: str | None) -> float | None:
    if activation not in BOUNDS or not values.size:
        return None
    low, high, near = BOUNDS[activation]
    return float(((values <= low + near) | (values >= high - near)).mean())


SATURATING = {"tanh", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign"}


def weight_scales(model: keras.Model) -> tuple[WeightScale, ...]:
    """Return the spread of every weight of a model, beside the spreads that the usual initializers give.

    Returns:
        A `WeightScale` for each trainable variable.
    """
    found, seen = [], set()
    for layer in [*sublayers(model), model]:
        if holds_layers(layer) and layer is not model and not hasattr(layer, "kernel"):
            continue  # a container: its layers come themselves
        for variable in layer.trainable_variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append(_scale(layer, variable))
    return tuple(found)


def _scale(layer: keras.layers.Layer, variable: Any) -> WeightScale:
    values = np.asarray(variable).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = WeightScale(
            path=variable.path,
            layer=layer.name,
            kind=type(layer).__name__,
            role=_role(layer, variable),
            shape=tuple(values.shape),
            mean=float(values.mean()) if values.size else 0.0,
            std=float(values.std()) if values.size else 0.0,
            rms=float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0,
            largest=float(np.abs(values).max()) if values.size else 0.0,
        )
    if scale.role in ("kernel", "matrix"):
        fan_in, fan_out = _fans(layer, values.shape)
        gain = _gain(describe_layer(layer).activation)
        spreads = [math.sqrt(2.0 / (fan_in + fan_out)), math.sqrt(1.0 / fan_in), gain / math.sqrt(fan_in)]
        return replace(scale, fan_in=fan_in, fan_out=fan_out, least=min(spreads), most=max(spreads))
    return scale


def _role(layer: keras.layers.Layer, variable: Any) -> str:
    name = variable.path.rsplit("/", 1)[-1]
    if "embedding" in name:
        return "embedding"
    if "recurrent" in name:
        return "recurrent"
    if "bias" in name or name == "beta":
        return "bias"
    if "kernel" in name and len(variable.shape) >= 2:
        return "kernel"
    return "matrix" if len(variable.shape) == 2 and min(variable.shape) > 1 else "other"


def _fans(layer: keras.layers.Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    if "Depthwise" in type(layer).__name__:
        window = int(np.prod(shape[:-2]))
        return window, window * shape[-1]
    if type(layer).__name__ == "EinsumDense":
        return _einsum_fans(layer, shape)
    window = int(np.prod(shape[:-2]))
    return max(1, window * shape[-2]), max(1, window * shape[-1])


def _einsum_fans(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the fans by the equation: what the output keeps of the kernel's axes goes out, the rest comes in."""
    inputs, _, output = layer.equation.replace(" ", "").partition("->")
    kernel = inputs.split(",")[1]
    kept = {axis: size for axis, size in zip(kernel, shape, strict=False) if axis in output}
    fan_out = int(np.prod(list(kept.values()))) if kept else 1
    return max(1, int(np.prod(shape)) // max(1, fan_out)), fan_out


def _gain(activation: str | None) -> float:
    """Return the gain that keeps the signal's size; that of sigmoids is left at 1, as their initializers do."""
    if activation in SATURATING or activation not in ACTIVATIONS or activation == "exponential":
        return 1.0
    return min(2.0, forward_gain(activation))


SECONDS = 2.0  # that the pass may take; what is left over then is not seen
ENTRIES = 2**18  # of all inputs in a batch of the pass: large batches are quick, and activations are larger than inputs
LARGEST_BATCH = 1024  # samples
SAMPLES_NAMED = 20
BATCHES_DRAWN = 1000  # of a loss that may depend on which samples a batch holds


def forward_pass(
    model: keras.Model, data: TrialData, *, by_batch: bool = False, seconds: float = SECONDS
) -> ForwardPassReading:
    """Say for which samples the net's output, its loss, or the gradient of that by the output is no number.

    A trial meets a few hundred samples; a logarithm of the single 0 among ten thousand waits for some later epoch. The
    model is left as it was. A dataset or a generator is not read any further than it was.

    Args:
        model: A compiled, built model.
        data: All of them.
        by_batch: Whether the loss may depend on which samples a batch holds, so that batches are drawn as in `fit`.
        seconds: After which no further batch is begun.

    Example:
        >>> from gradrecipes.training.trial_data import trial_data
        >>> forward_pass(model, trial_data(x, y)).nonfinite_samples
        ()
    """
    if data.batches is not None or data.y is None or has_own_train_step(model):
        return ForwardPassReading()
    found = _all_passed(model, data, seconds)
    if not by_batch or found.nonfinite_samples or found.samples < data.samples:
        return found
    return replace(found, nonfinite_batch=_broken_batch(model, data, seconds / 2))


@preserves_state
def _broken_batch(model: keras.Model, data: TrialData, seconds: float) -> tuple[int, ...]:
    """Return the samples of the first of many batches, drawn as in `fit`, that has no loss with the initial weights."""
    rows, random, began = np.arange(data.samples), np.random.default_rng(0), time.monotonic()
    passed = [
        model(keras.utils.unpack_x_y_sample_weight(data.take(part))[0], training=False) for part in _batches(data)
    ]
    outputs = [tf.concat(parts, axis=0) for parts in zip(*map(keras.tree.flatten, passed), strict=True)]
    judge = tf.function(lambda batch, part: _loss_and_slopes(model, batch, passed[0], part), autograph=False)
    size, drawn = min(data.batch_size, data.samples), iter(range(BATCHES_DRAWN))
    while True:
        for index in random.permutation(rows)[: data.samples // size * size].reshape(-1, size):
            if next(drawn, None) is None or time.monotonic() - began > seconds:
                return ()
            parts = judge(data.take(index), [tf.gather(one, index) for one in outputs])
            if not all(np.isfinite(np.asarray(one)).all() for one in parts):
                return tuple(map(int, index))


@preserves_state
def _all_passed(model: keras.Model, data: TrialData, seconds: float) -> ForwardPassReading:
    samples, bad, failure, began = 0, [], None, time.monotonic()
    parts = _batches(data)
    while (index := next(parts, None)) is not None:
        try:
            bad += _bad_of(model, data, index)
        except Exception as error:
            logger.debug("The data could not be sent through %r.", model, exc_info=True)
            failure = named(error)
            if len(index) <= data.batch_size:
                break
            parts = iter(np.split(index, range(data.batch_size, len(index), data.batch_size)))  # which one is it?
            continue
        samples, failure = samples + len(index), None
        if time.monotonic() - began > seconds or len(bad) >= SAMPLES_NAMED:
            break
    return ForwardPassReading(samples, tuple(bad[:SAMPLES_NAMED]), failure)


def _batches(data: TrialData) -> Iterator[np.ndarray]:
    entries = sum(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(data.x))
    size = min(max(data.batch_size, ENTRIES // max(1, entries)), max(data.batch_size, LARGEST_BATCH))
    for start in range(0, data.samples, size):
        yield np.arange(start, min(start + size, data.samples))


def _bad_of(model: keras.Model, data: TrialData, index: np.ndarray) -> list[int]:
    """Return which of some samples are bad; where only their sum tells, by halves."""
    bad, whole = _judged(model, data.take(index))
    if bad.any():
        return [int(sample) for sample in index[bad]]
    if whole:
        return []
    if len(index) == 1:
        return [int(index[0])]
    middle = len(index) // 2
    return _bad_of(model, data, index[:middle]) or _bad_of(model, data, index[middle:])


def _judged(model: keras.Model, batch: Any) -> tuple[np.ndarray, bool]:
    """Return bool `[samples]`, whose output or whose loss's slope is no number, and whether the loss is one."""
    x = keras.utils.unpack_x_y_sample_weight(batch)[0]
    outputs = model(x, training=False)
    flat = keras.tree.flatten(outputs)
    loss, *slopes = _loss_and_slopes(model, batch, outputs, flat)
    samples = len(keras.tree.flatten(x)[0])
    bad = np.zeros(samples, bool)
    for array in (*flat, *slopes):
        values = tf.cast(tf.convert_to_tensor(array), tf.float32)
        if values.shape.rank and values.shape[0] == samples:
            bad |= ~np.isfinite(np.asarray(values)).reshape(samples, -1).all(axis=1)
    return bad, bool(np.isfinite(float(loss)))


def _loss_and_slopes(model: keras.Model, batch: Any, like: Any, flat: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return the loss of a batch at outputs of a structure, and its gradient by each of them."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    with tf.GradientTape() as tape:
        tape.watch(flat)
        predicted = keras.tree.pack_sequence_as(like, flat)
        loss = model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=sample_weight, training=False)
    return [loss, *(slope for slope in tape.gradient(loss, flat) if slope is not None)]


def failure(stage: str, error: Exception, *, batch: Any = None) -> FailureReading:
    """Return what is kept of an error: where it was raised, its class, and what it says.

    Args:
        stage: `"build"` or `"step"`.
        error: What was raised.
        batch: What the model was given, if that may have been the reason.
    """
    message = essence(error)
    if stage == "step" and batch is not None and keras.utils.unpack_x_y_sample_weight(batch)[1] is None:
        message = f"The data bring no targets (y is None), and the step could not do without: {message}"
    return FailureReading(stage, type(error).__name__, message)
