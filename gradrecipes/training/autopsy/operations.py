"""The innermost operation that breaks: a step traced as a graph, and every operation of it asked for NaN and Inf."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.autopsy import Operation
from gradrecipes.training.recovery.model_state import preserve_state

logger = logging.getLogger(__name__)

MAX_OPERATIONS = 20_000  # of a step; a larger one would take minutes to trace
GRADIENT = "gradient_tape/"  # scope of the operations of a backward pass
# What each type of operation does wrong when its inputs are finite: what it gives NaN for, what it gives Inf for.
UNSAFE: dict[str, tuple[str, str]] = {
    "Log": ("the logarithm of a negative number", "the logarithm of 0"),
    "Log1p": ("the logarithm of a number below -1", "the logarithm of 0"),
    "Sqrt": ("the square root of a negative number", "an overflow"),
    "Rsqrt": ("the square root of a negative number", "the reciprocal of the square root of 0"),
    "Pow": ("a power of a negative number", "a power that overflows, or a negative power of 0"),
    "RealDiv": ("the division 0 / 0", "a division by 0"),
    "Div": ("the division 0 / 0", "a division by 0"),
    "Reciprocal": ("a division by 0", "a division by 0"),
    "Xdivy": ("the division 0 / 0", "a division by 0"),
    "Exp": ("an exponential", "an exponential that overflows"),
    "Expm1": ("an exponential", "an exponential that overflows"),
    "Cast": ("a conversion to another dtype", "a number that is too large for the dtype"),
    "Acos": ("an arc cosine of a number beyond 1", "an overflow"),
    "Asin": ("an arc sine of a number beyond 1", "an overflow"),
    "Atanh": ("an inverse tanh of a number beyond 1", "an inverse tanh of 1"),
    "Erfinv": ("an inverse error function of a number beyond 1", "an inverse error function of 1"),
    "Lgamma": ("a gamma function", "a gamma function of 0 or a negative whole number"),
    "Digamma": ("a digamma function of a negative whole number", "a digamma function of 0"),
    "SqrtGrad": ("the derivative of a square root at 0", "the derivative of a square root at 0"),
    "RsqrtGrad": ("the derivative of a root at 0", "the derivative of a root at 0"),
    "Square": ("a square", "a square that overflows"),
    "MatMul": ("a matrix product", "a matrix product that overflows"),
    "Cholesky": ("a Cholesky factor of a matrix that is not positive definite", "an overflow"),
}
# What an operation gives NaN for when an input is infinite.
UNSAFE_OF_INFINITY = {
    "Softmax": "a softmax over a row that is masked throughout (all entries are -inf)",
    "LogSoftmax": "a softmax over a row that is masked throughout (all entries are -inf)",
    "Sub": "inf - inf",
    "AddV2": "inf - inf",
    "Add": "inf - inf",
    "AddN": "inf - inf",
    "Sum": "inf - inf",
    "Mean": "inf - inf",
    "Mul": "0 * inf",
    "MulNoNan": "0 * inf",
    "RealDiv": "inf / inf",
    "MatMul": "0 * inf in a matrix product",
    "BatchMatMulV2": "0 * inf in a matrix product",
}


@dataclass(frozen=True)
class _Seen:
    name: str
    type: str
    dtype: str
    nan: bool
    inf: bool
    nan_before: bool
    inf_before: bool


def broken_operation(model: keras.Model, data: Any, *, own_train_step: bool) -> Operation | None:
    """Return the first operation of a training step that makes NaN or Inf of finite numbers.

    The step is traced once more, as a graph, so that operations inside of layers, of nested models, of losses and of a
    train step of the user's own are seen. The model is left as it was.

    Args:
        model: A compiled, built model.
        data: What `train_step` gets.
        own_train_step: Whether to trace `model.train_step`, rather than the call and the loss.

    Returns:
        The operation, or None where none is seen to break, or where the step cannot be traced.
    """
    run = (lambda: model.train_step(data)) if own_train_step else (lambda: _plain_step(model, data))
    try:
        with preserve_state(model):
            seen = _seen(run)
    except Exception:  # a step that cannot be traced
        logger.debug("The operations of a step could not be read.", exc_info=True)
        return None
    return _first(seen)


def _plain_step(model: keras.Model, data: Any) -> None:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
    tape.gradient(loss, model.trainable_weights)


def _seen(run: Callable[[], Any]) -> list[_Seen]:
    about: list[tuple[str, str, str]] = []

    @tf.function(autograph=False, jit_compile=False)
    def traced() -> tf.Tensor:
        run()
        rows = []
        for operation in tf.compat.v1.get_default_graph().get_operations():
            made = [one for one in operation.outputs if one.dtype.is_floating]
            if not made or len(rows) >= MAX_OPERATIONS:
                continue
            given = [one for one in operation.inputs if one.dtype.is_floating]
            about.append((operation.name, operation.type, made[0].dtype.name))
            rows.append(tf.stack([*_flags(made), *_flags(given)]))
        return tf.stack(rows)

    flags = np.asarray(traced())
    return [_Seen(*named, *map(bool, row)) for named, row in zip(about, flags, strict=True)]


def _flags(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return whether some tensors hold a NaN, and whether they hold an infinity."""
    if not tensors:
        return tf.constant(False), tf.constant(False)
    nan = [tf.reduce_any(tf.math.is_nan(tensor)) for tensor in tensors]
    inf = [tf.reduce_any(tf.math.is_inf(tensor)) for tensor in tensors]
    return tf.reduce_any(tf.stack(nan)), tf.reduce_any(tf.stack(inf))


def _first(seen: Sequence[_Seen]) -> Operation | None:
    """Return the first operation that makes NaN; where an infinity made before it explains that, the one of this."""
    maker = next((one for one in seen if one.nan and not one.nan_before), None)
    makers = (one for one in seen if one.inf and not (one.inf_before or one.nan_before) and one.type in UNSAFE)
    overflow = next(makers, None)
    if maker is None:
        return None if overflow is None else _described(overflow, overflow.type, 1)
    if maker.inf_before and overflow is not None and seen.index(overflow) < seen.index(maker):
        return _described(overflow, overflow.type, 1)
    if maker.inf_before and maker.type in UNSAFE_OF_INFINITY:
        words, backward = UNSAFE_OF_INFINITY[maker.type], maker.name.startswith(GRADIENT)
        return Operation(_shortened(maker.name), maker.type, words, backward, maker.dtype)
    return _described(maker, maker.type, 0)


def _described(one: _Seen, kind: str, place: int) -> Operation:
    words = UNSAFE.get(kind, (f"the operation {kind}", f"an overflow in {kind}"))[place]
    return Operation(_shortened(one.name), kind, words, one.name.startswith(GRADIENT), one.dtype)


def _shortened(name: str) -> str:
    """Return the name of an operation without the scope of the backward pass."""
    return name.removeprefix(GRADIENT)
