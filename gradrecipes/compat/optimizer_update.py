"""How an optimizer of Keras' updates variables: the same arithmetic, in fewer operations or less memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced


def updated_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Return the variables that a built optimizer updates."""
    return list(optimizer._trainable_variables)


@contextlib.contextmanager
def clipped_first(optimizer: keras.optimizers.Optimizer, clip: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Clip the gradients of an update, the means where it accumulates, before the optimizer clips as compiled."""
    clip_as_compiled = optimizer._clip_gradients

    def clip_twice(gradients: list[Any]) -> list[Any]:
        return clip_as_compiled(clip(gradients))

    with replaced(optimizer, "_clip_gradients", clip_twice):
        yield


@contextlib.contextmanager
def scalars_read_once(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Let an update read the step counter and the learning rate once, not once for each variable.

    Keras reads both anew for every variable, and TensorFlow cannot merge such reads, so that Adam computes
    its bias correction as often as there are weights. The arithmetic and its results stay the same. A class of the
    user's own is let be: it may do with its counter what only a variable can.
    """
    if not is_of_keras(optimizer):
        yield
        return
    update, counter = optimizer._backend_update_step, optimizer._iterations

    def update_with_scalars(gradients, variables, learning_rate):
        with replaced(optimizer, "_iterations", tf.convert_to_tensor(counter)):
            return update(gradients, variables, tf.convert_to_tensor(learning_rate))

    with replaced(optimizer, "_backend_update_step", update_with_scalars):
        yield


# Half a megabyte of entries, from which on temporary results of two variables crowd each other out.
SEQUENCE_FROM = 131_072
# Classes of Keras whose arithmetic TensorFlow's graph optimizer leaves as it is written, to the bit.
AS_WRITTEN = {"Adam", "AdamW", "Adamax", "Lion", "Nadam", "SGD"}


def runs_as_written(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether an update gives the same bits with and without TensorFlow's graph optimizer.

    Others divide by a square root, which it turns into a product with the inverse one, or by a constant, such as the
    number of batches that are accumulated.
    """
    plain = is_of_keras(optimizer) and not optimizer.gradient_accumulation_steps
    return plain and type(optimizer).__name__ in AS_WRITTEN


@contextlib.contextmanager
def decayed_as_in_a_graph(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Let weights decay within a condition to the bit as outside of one.

    Keras writes (weight · decay) · rate, of which the graph optimizer makes weight · (decay · rate), but not within a
    condition. A class of the user's own is let be.
    """
    rewrites = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    if not rewrites or tf.executing_eagerly() or not is_of_keras(optimizer) or optimizer.weight_decay is None:
        yield
        return

    def decay(variables: list[Any]) -> None:
        for variable in variables:
            if optimizer._use_weight_decay(variable):
                value = variable.value if isinstance(variable, keras.Variable) else variable
                rate, share = (tf.cast(x, value.dtype) for x in (optimizer.learning_rate, optimizer.weight_decay))
                value.assign_sub(value * (share * rate))

    with replaced(optimizer, "_apply_weight_decay", decay):
        yield


@contextlib.contextmanager
def updated_in_sequence(optimizer: keras.optimizers.Optimizer, scale: tf.Tensor | None = None) -> Iterator[None]:
    """Let an update go through its large variables one after the other, so that their temporary results share memory.

    The arithmetic and its results stay the same. A class of the user's own is let be.

    Args:
        optimizer: What updates weights.
        scale: What every gradient is multiplied by, in the update itself; see `scales_in_update`.
    """
    if not is_of_keras(optimizer):
        yield
        return
    update_step, last = optimizer.update_step, []

    def update(gradient, variable, learning_rate):
        if tf.executing_eagerly() or variable.shape.num_elements() < SEQUENCE_FROM:
            update_step(scaled_gradient(gradient, scale), variable, learning_rate)
            return
        graph = tf.compat.v1.get_default_graph()
        with tf.control_dependencies([operation for operation in last if operation.graph is graph]):
            update_step(scaled_gradient(gradient, scale), variable, learning_rate)
        last[:] = graph.get_operations()[-1:]

    with replaced(optimizer, "update_step", update):
        yield


def scaled_gradient(gradient: Any, scale: tf.Tensor | None) -> Any:
    """Return a gradient, dense or sparse, multiplied by a factor; as it is where there is none."""
    if scale is None:
        return gradient
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    values = values * tf.cast(scale, values.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def is_of_keras(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether Keras itself wrote the class of an optimizer."""
    return type(optimizer).__module__.startswith("keras.")


def scales_in_update(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> bool:
    """Return whether gradients may be multiplied as late as in the update of each variable.

    Not where something before it depends on their size: a bound of the optimizer's own, or accumulation.
    """
    plain = not any(
        getattr(optimizer, name, None)
        for name in ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps")
    )
    direct = any(getattr(variable, "overwrite_with_gradient", False) for variable in variables)
    halves = any(tf.as_dtype(variable.dtype).size < 4 for variable in variables)
    return plain and is_of_keras(optimizer) and not direct and not halves


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


def schedule_of(optimizer: keras.optimizers.Optimizer) -> tuple[Any, int] | None:
    """Return an optimizer's schedule and the batch at which it is read next; None where the rate is a number."""
    rate = getattr(optimizer, "_learning_rate", None)
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return None
    return rate, int(optimizer._iterations)  # `iterations` counts updates, which may take several batches
