"""Update weights through TensorFlow's fused kernels: one pass over each variable and its slots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced
from gradrecipes.compat.optimizer_update import scaled_gradient

Kernel = Callable[[Any, Any, tf.Tensor], None]  # takes gradient, variable and learning rate


def require_fusible(optimizer: keras.optimizers.Optimizer, caller: str) -> None:
    """Refuse an optimizer that no fused kernel serves.

    Raises:
        ValueError: With what it is and what is supported.
    """
    kind = type(optimizer)
    if kind in _KERNELS and not getattr(optimizer, "amsgrad", False):
        return
    setting = " with amsgrad=True" if getattr(optimizer, "amsgrad", False) else ""
    raise ValueError(
        f"`fused=True` of {caller} needs an optimizer of TensorFlow's fused kernels: "
        f"{', '.join(one.__name__ for one in _KERNELS)}, without amsgrad. Received: {kind.__name__}{setting}. "
        "Leave `fused` out: the update is then that of Keras, bit by bit."
    )


@contextlib.contextmanager
def fused(optimizer: keras.optimizers.Optimizer, scale: tf.Tensor | None = None) -> Iterator[None]:
    """Let an optimizer update dense gradients through a fused kernel, and sparse ones as it does.

    The arithmetic is Keras' in another order of rounding, so that weights differ in their last bits.

    Args:
        optimizer: One that `require_fusible` admits, built.
        scale: What every gradient is multiplied by, or None.
    """
    kernel, update_step = _KERNELS[type(optimizer)](optimizer), optimizer.update_step

    def update(gradient, variable, learning_rate):
        gradient = scaled_gradient(gradient, scale)
        if isinstance(gradient, tf.IndexedSlices):
            update_step(gradient, variable, learning_rate)
        else:
            kernel(tf.cast(gradient, variable.dtype), variable, tf.cast(learning_rate, variable.dtype))

    with replaced(optimizer, "update_step", update):
        yield


def _adam(optimizer: keras.optimizers.Adam) -> Kernel:
    def update(gradient, variable, learning_rate):
        index = optimizer._get_variable_index(variable)
        step = tf.cast(tf.convert_to_tensor(optimizer.iterations) + 1, variable.dtype)
        beta_1, beta_2 = (tf.cast(beta, variable.dtype) for beta in (optimizer.beta_1, optimizer.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(optimizer._momentums[index]),
            v=_handle(optimizer._velocities[index]),
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(optimizer.epsilon, variable.dtype),
            grad=gradient,
        )

    return update


def _sgd(optimizer: keras.optimizers.SGD) -> Kernel:
    def update(gradient, variable, learning_rate):
        if not optimizer.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=_handle(variable), alpha=learning_rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=_handle(variable),
            accum=_handle(optimizer.momentums[optimizer._get_variable_index(variable)]),
            lr=learning_rate,
            grad=gradient,
            momentum=tf.cast(optimizer.momentum, variable.dtype),
            use_nesterov=optimizer.nesterov,
        )

    return update


def _handle(variable: Any) -> tf.Tensor:
    return variable.value.handle if isinstance(variable, keras.Variable) else variable.handle


_KERNELS: dict[type, Callable[[Any], Kernel]] = {
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.SGD: _sgd,
}
