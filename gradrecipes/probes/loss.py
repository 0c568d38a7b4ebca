"""See what a net puts out at first, and whether its loss and the loss's gradient are numbers wherever it may get to."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import LossEquivalent, LossPoint, LossReading, OutputReading
from gradrecipes.probes.answers import spread_over_samples
from gradrecipes.probes.predictions import PROBABILITIES, SAME, mispaired, pairs_samples
from gradrecipes.training.description.output_head import OutputLoss, losses_of
from gradrecipes.training.recovery.model_state import preserves_state
from gradrecipes.training.trial_data import first_samples, named

CLOSE = 2e-3  # relative difference at every trial; the losses below differ by tenths from one another
DIVERGENCE = "kl_divergence"
TRIALS = 3  # predictions on which they are compared


def acts_like(loss: Any, target: tf.Tensor, output: tf.Tensor) -> LossEquivalent | None:
    """Return the name of the Keras loss, and whether it takes logits, that a loss equals in value; None for any other.

    Args:
        loss: A `keras.losses.Loss`.
        target: Of a batch.
        output: What the net puts out for it.

    Example:
        >>> own = keras.losses.MeanSquaredError()
        >>> acts_like(own, tf.constant([[1.0], [2.0]]), tf.constant([[0.5], [0.1]])).loss
        'mean_squared_error'
    """
    random = np.random.default_rng(0)
    values = np.asarray(tf.cast(output, tf.float32))
    noise = [random.uniform(0.2, 0.8, values.shape) for _ in range(TRIALS - 1)]
    trials = [values, *(0.5 * values + part for part in noise)]
    if values.ndim > 1 and values.shape[-1] > 1 and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        trials = [trial / trial.sum(axis=-1, keepdims=True) for trial in trials]  # Keras would do so itself
    trials = [tf.constant(trial, tf.float32) for trial in trials]
    try:
        found = [float(loss(target, trial)) for trial in trials]
    except Exception:  # a loss that needs more than targets and predictions
        return None
    if not np.isfinite(found).all():
        found = found[1:]  # away from the ends that only the net itself may reach
        trials = trials[1:]
    if not np.isfinite(found).all():
        return None
    for name, logits, candidate in candidates(target, output):
        try:
            expected = [float(candidate(target, trial)) for trial in trials]
        except Exception:
            continue
        if np.allclose(found, expected, rtol=CLOSE, atol=1e-6):
            return LossEquivalent(name, logits)
    return None


def candidates(target: tf.Tensor, output: tf.Tensor) -> Iterator[tuple[str, bool | None, Any]]:
    """Yield (name, from_logits, loss) of the losses of Keras that fit the shapes."""
    shape, given = tuple(output.shape), tuple(target.shape)
    whole = given in (shape, shape[:-1]) if shape[-1:] == (1,) else given == shape
    if len(shape) > 1 and shape[-1] > 1 and given in (shape[:-1], (*shape[:-1], 1)):
        for logits in (True, False):
            yield (
                "sparse_categorical_crossentropy",
                logits,
                keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
            )
    if not whole:
        return
    yield "mean_squared_error", None, keras.losses.MeanSquaredError()
    yield "mean_absolute_error", None, keras.losses.MeanAbsoluteError()
    for logits in (True, False):
        yield "binary_crossentropy", logits, keras.losses.BinaryCrossentropy(from_logits=logits)
        if shape[-1] > 1:
            yield "categorical_crossentropy", logits, keras.losses.CategoricalCrossentropy(from_logits=logits)
    if shape[-1] > 1:
        yield DIVERGENCE, None, keras.losses.KLDivergence()


logger = logging.getLogger(__name__)

SAMPLES = 256  # of a batch
SAMPLES_NAMED = 20
# What float32 makes of an activation far out: sigmoid(17) is exactly 1, and sigmoid(-104) exactly 0.
ENDS = {"sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hard_tanh": (-1.0, 1.0)}
ENDS |= {"relu": (0.0,), "relu6": (0.0, 6.0), "softplus": (0.0,), "exponential": (0.0,)}
FAR_DISTANCES = (1e2, 1e4, 1e6)  # times the size of the answers


@preserves_state
def loss_probe(model: keras.Model, batch: Any, description: Description) -> LossReading:
    """Tell what a net puts out on a batch, and where its loss or the gradient of it is no number.

    The loss of each output is evaluated, with its gradient with respect to the predictions, on the batch's own
    targets at several predictions: those of the net; two thirds of them at an end of a bounded last activation, which
    float32 reaches exactly; and the targets themselves. The model is left as it was.

    Args:
        model: A compiled, built model.
        batch: What `train_step` gets.
        description: Of the model.

    Example:
        >>> from gradrecipes.training.description.describe import describe_model
        >>> found = loss_probe(model, (x[:8], y[:8]), describe_model(model))
        >>> [(point.at, point.value, point.gradient) for point in found.points]
        [('outputs', 'finite', 'finite'), ('targets', 'finite', 'finite')]
    """
    read: list[OutputReading] = []
    points: list[LossPoint] = []
    failure = None
    try:
        x, y, _ = (first_samples(part, SAMPLES) for part in keras.utils.unpack_x_y_sample_weight(batch))
        outputs = keras.tree.flatten(model(x, training=False))
        read += [_read(output) for output in outputs]
        targets = [] if y is None else keras.tree.flatten(y)
        for one in losses_of(model, len(outputs)):
            if one.loss is None or one.target is None or max(one.output, one.target + 1) > len(targets):
                continue
            output, target = outputs[one.output], tf.convert_to_tensor(targets[one.target])
            activation = _activation(description, one.output)
            read[one.output] = _judged(read[one.output], model, x, activation, one, output, target)
            points += _points(one, activation, output, target)
    except Exception as error:  # a train step of the user's own may do what the call alone cannot
        logger.debug("The loss of %r could not be probed.", model, exc_info=True)
        failure = named(error)
    return LossReading(tuple(read), tuple(points), failure)


def _judged(
    read: OutputReading, model: keras.Model, x: Any, activation: str | None, one: OutputLoss, output: Any, target: Any
) -> OutputReading:
    """Return the reading of an output with what its loss and targets add."""
    read = replace(read, target_shape=tuple(int(size) for size in target.shape[1:]))
    loss = as_loss(one.loss)
    if loss is None:
        return read
    about = one.about
    if about["custom"]:
        read = replace(read, acts_like=acts_like(loss, target, tf.constant(np.asarray(output))))
        read = replace(read, flat=_is_flat(loss, target, output))
        if read.acts_like is None and activation in (None, "linear", "unknown") and not _held(model):
            read = replace(read, far_losses=_far_losses(loss, target, output, _reach(activation, read)))
        if activation == "linear" and tuple(output.shape) == tuple(target.shape):
            read = replace(read, beyond=_beyond(loss, target, output))
    name = about["loss"] if read.acts_like is None else read.acts_like.loss
    from_logits = about["from_logits"] if read.acts_like is None else read.acts_like.from_logits
    if from_logits or (activation == "sigmoid" and "categorical" in str(name)):
        read = replace(read, logits_seen=_logits_seen(model, x, loss, target, one.output))
    one_each = tuple(output.shape) in ((*target.shape, 1), (*target.shape[:1], 1))
    if about["custom"] and one_each and len(target) > 1:
        read = replace(read, pairs_samples=pairs_samples(loss, target, output))
    own = not about["custom"] or read.acts_like is None
    if own and activation in {"linear", *PROBABILITIES} and len(target) > 1:
        read = replace(read, mispaired=mispaired(loss, target, output, activation))
    return read


def _points(one: OutputLoss, activation: str | None, output: Any, target: tf.Tensor) -> Iterator[LossPoint]:
    loss = as_loss(one.loss)
    if loss is None:
        return
    for at, prediction in _predictions(activation, output, target):
        evaluated = _evaluate(loss, target, prediction)
        if evaluated is not None:
            value, gradient, samples = evaluated
            yield LossPoint(one.output, at, activation, value, gradient, samples)


def _is_flat(loss: Any, target: tf.Tensor, output: Any) -> bool:
    """Return whether a loss has no slope at the predictions, nor around them: equal ones may lie on a top of it."""
    own = np.asarray(output)
    around = own + np.random.default_rng(0).normal(size=own.shape).astype(own.dtype)
    for prediction in (tf.constant(own), tf.constant(around)):
        try:
            with tf.GradientTape() as tape:
                tape.watch(prediction)
                value = tf.reduce_mean(loss(target, prediction))
            slope = tape.gradient(value, prediction)
        except Exception:  # a loss that needs more than targets and predictions
            return False
        if slope is None or not float(value) or np.any(np.asarray(tf.convert_to_tensor(slope))):
            return False
    return True


def _beyond(loss: Any, target: tf.Tensor, output: Any) -> tuple[float, ...] | None:
    """Return the loss at the net's own answers, at the targets, and at twice the targets."""
    right = tf.cast(target, output.dtype)
    try:
        found = tuple(float(tf.reduce_mean(loss(target, at))) for at in (tf.identity(output), right, 2.0 * right))
    except Exception:  # a loss that needs more than targets and predictions
        return None
    return found if all(map(math.isfinite, found)) else None


def _activation(description: Description, place: int) -> str | None:
    known = description.calls is not None and place < len(description.outputs)
    return description.outputs[place].activation if known else None


def _read(output: Any) -> OutputReading:
    values = np.asarray(tf.cast(tf.convert_to_tensor(output), tf.float64))
    finite = values[np.isfinite(values)]
    with np.errstate(all="ignore"):
        rms = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else None
        spread = float(finite.std()) if finite.size else None
    sums, over = None, None
    if values.ndim >= 2 and values.shape[-1] > 1:
        sums = _sums_to_one(values, -1, _tolerance(output))
        others = (axis for axis in range(values.ndim - 1) if values.shape[axis] > 1 and values.std() > 0)
        if sums < 1.0:
            over = next((axis for axis in others if _sums_to_one(values, axis, _tolerance(output)) == 1.0), None)
    return OutputReading(
        shape=tuple(int(size) for size in values.shape[1:]),
        rms=rms if rms is not None and math.isfinite(rms) else None,
        min=float(finite.min()) if finite.size else None,
        max=float(finite.max()) if finite.size else None,
        mean=float(finite.mean()) if finite.size else None,
        std=spread if spread is not None and math.isfinite(spread) else None,
        nonfinite_share=1.0 - finite.size / max(1, values.size),
        sums_to_one=sums,
        sums_over=over,
        sample_spread=spread_over_samples(values),
    )


def _sums_to_one(values: np.ndarray, axis: int, tolerance: float) -> float:
    """Return the share of the distributions along an axis: numbers that are not negative and sum to 1."""
    with np.errstate(invalid="ignore"):
        near = np.abs(values.sum(axis=axis) - 1.0) < tolerance
    return float((near & (values >= 0).all(axis=axis)).mean())


def _tolerance(output: Any) -> float:
    return 0.05 if output.dtype in (tf.float16, tf.bfloat16) else 1e-3


class _Function(keras.losses.Loss):
    """Call a loss function as Keras does: with targets and predictions of the same rank."""

    def __init__(self, function: Any):
        super().__init__(name="probed")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if len(y_true.shape) == len(y_pred.shape) + 1 and y_true.shape[-1] == 1:
            y_true, y_pred = (y_true, y_pred[:, None]) if len(y_pred.shape) == 1 else (y_true[..., 0], y_pred)
        elif len(y_pred.shape) == len(y_true.shape) + 1 and y_pred.shape[-1] == 1:
            y_true, y_pred = (y_true[:, None], y_pred) if len(y_true.shape) == 1 else (y_true, y_pred[..., 0])
        return self.function(y_true, y_pred)


def as_loss(given: Any) -> Any:
    """Return what `compile` was given as a function of targets and predictions; None for a name that is not known."""
    if isinstance(given, str):
        if given.lower() in ("crossentropy", "ce"):
            return None
        given = keras.losses.get(given)
    return given if isinstance(given, keras.losses.Loss) else _Function(given)


def losses_by_row(model: keras.Model, outputs: int) -> list[tuple[int, int, Any]]:
    """Return (place of the output, of its target, loss of each sample of both) of the outputs that have a loss."""
    known = [(one.output, one.target, as_loss(one.loss)) for one in losses_of(model, outputs) if one.loss is not None]
    return [(output, target, loss.call) for output, target, loss in known if target is not None and loss is not None]


def _predictions(activation: str | None, output: Any, target: tf.Tensor) -> Iterator[tuple[str, tf.Tensor]]:
    """Yield (name, predictions) at which the loss has to be a number."""
    output = tf.convert_to_tensor(output)
    # Not all samples are moved there: a loss that compares samples with each other may ask that they differ.
    moved = tf.reshape(tf.range(len(output)) % 3 != 0, (-1, *[1] * (len(output.shape) - 1)))
    if bool(tf.reduce_all(tf.math.is_finite(tf.cast(output, tf.float32)))):
        yield "outputs", tf.constant(np.asarray(output))
    for end in ENDS.get(activation or "", ()):
        yield f"{end:g}", tf.where(moved, tf.cast(end, output.dtype), output)
    if activation == "softmax" and len(output.shape) >= 2 and output.shape[-1] > 1:
        classes = output.shape[-1]
        places = np.arange(int(np.prod(output.shape[:-1]))).reshape(output.shape[:-1]) // 2 % classes
        yield "one class", tf.where(moved, tf.one_hot(places, classes, dtype=output.dtype), output)
    if target.dtype.is_floating and tuple(target.shape) == tuple(output.shape):
        yield "targets", tf.cast(target, output.dtype)


def _evaluate(loss: Any, target: tf.Tensor, prediction: tf.Tensor) -> tuple[str, str, tuple[int, ...]] | None:
    """Return (value, gradient, samples whose gradient is not finite), as `LossPoint` explains them."""
    try:
        with tf.GradientTape() as tape:
            tape.watch(prediction)
            value = tf.convert_to_tensor(loss(target, prediction))
        gradient = tape.gradient(value, prediction)
    except Exception:  # shapes that do not fit, a loss that needs more than this: the trial will show it
        logger.debug("The loss could not be evaluated.", exc_info=True)
        return None
    word = _word(np.asarray(tf.cast(value, tf.float64)))
    if gradient is None:
        return word, "finite", ()
    slopes = np.asarray(tf.cast(tf.convert_to_tensor(gradient), tf.float64))
    bad = ~np.isfinite(slopes.reshape(len(slopes), -1)).all(axis=1)
    return word, _word(slopes), tuple(int(sample) for sample in np.flatnonzero(bad)[:SAMPLES_NAMED])


def _word(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "nan"
    return "inf" if np.isinf(values).any() else "finite"


def _held(model: keras.Model) -> bool:
    """Return whether constraints or penalties on weights keep the answers of a net from growing forever."""
    names = ("kernel_constraint", "kernel_regularizer", "constraint")
    return bool(model.losses) or any(getattr(layer, name, None) for layer in sublayers(model) for name in names)


def _reach(activation: str | None, read: OutputReading) -> tuple[float, float] | None:
    """Return the lowest and highest answer to try: where the last operation is not known, a side that was not seen
    is not tried; None where all answers lie within [-1, 1], as those of a sigmoid or a cosine do.
    """
    if activation == "linear":
        return -math.inf, math.inf
    if read.min is None or read.max is None or (read.min >= -1.0 and read.max <= 1.0):
        return None
    return (0.0 if read.min >= 0 else -math.inf), (0.0 if read.max <= 0 else math.inf)


def _far_losses(
    loss: Any, target: tf.Tensor, output: Any, reach: tuple[float, float] | None
) -> tuple[float, ...] | None:
    """Return the loss at the answers, and ever further away from them along the negative gradient."""
    if reach is None:
        return None
    prediction = tf.constant(np.asarray(output))
    try:
        with tf.GradientTape() as tape:
            tape.watch(prediction)
            value = tf.reduce_mean(loss(target, prediction))
        gradient = tape.gradient(value, prediction)
        if gradient is None:
            return None
        slope = tf.convert_to_tensor(gradient)
        size = float(tf.sqrt(tf.reduce_mean(tf.square(slope))))
        if not 0 < size < math.inf:
            return None
        scale = max(1.0, float(tf.sqrt(tf.reduce_mean(tf.square(prediction)))))
        away = scale / size * slope
        moved = [tf.clip_by_value(prediction - distance * away, *reach) for distance in FAR_DISTANCES]
        return float(value), *(float(tf.reduce_mean(loss(target, one))) for one in moved)
    except Exception:  # a loss that needs more than targets and predictions
        logger.debug("The loss could not be evaluated far out.", exc_info=True)
        return None


def _logits_seen(model: keras.Model, x: Any, loss: Any, target: tf.Tensor, place: int) -> bool | None:
    """Say whether the loss of the traced model differs from that of the bare predictions: it got what came before them.

    Keras' softmax and sigmoid leave a note on their output from which its losses learn the logits; a cast to another
    dtype, or an operation behind, loses it.
    """

    @tf.function(autograph=False)
    def traced():
        output = keras.tree.flatten(model(x, training=False))[place]
        return loss(target, output), loss(target, tf.identity(tf.identity(output)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says there what is measured here
        seen, bare = (float(value) for value in traced())
    if not (math.isfinite(seen) and math.isfinite(bare)):
        return None
    return abs(seen - bare) > SAME * max(abs(seen), abs(bare))
