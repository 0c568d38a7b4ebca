"""Optimizers of Keras by their private names: what they hold, and their update in fewer operations or less memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import leaves, optimizers_of, replaced, unbuilt_copy
from gradrecipes.compat.tensorflow_private import rare_cond, stays_one_operation, variable_of


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
                value = variable_of(variable)
                rate, share = (tf.cast(x, value.dtype) for x in (optimizer.learning_rate, optimizer.weight_decay))
                value.assign_sub(value * (share * rate))

    with replaced(optimizer, "_apply_weight_decay", decay):
        yield


@contextlib.contextmanager
def updated_in_sequence(
    optimizer: keras.optimizers.Optimizer, scale: tf.Tensor | None = None, *, xla: bool = False
) -> Iterator[None]:
    """Let an update go through its large variables one after the other, so that their temporary results share memory.

    The arithmetic and its results stay the same. A class of the user's own is let be.

    Args:
        optimizer: What updates weights.
        scale: What every gradient is multiplied by, in the update itself; see `scales_in_update`.
        xla: Whether XLA compiles the update.
    """
    if not is_of_keras(optimizer):
        yield
        return
    update_step, last = optimizer.update_step, []

    def update(gradient, variable, learning_rate):
        if tf.executing_eagerly() or variable.shape.num_elements() < SEQUENCE_FROM:
            update_step(scaled_gradient(gradient, scale, xla=xla), variable, learning_rate)
            return
        graph = tf.compat.v1.get_default_graph()
        with tf.control_dependencies([operation for operation in last if operation.graph is graph]):
            update_step(scaled_gradient(gradient, scale, xla=xla), variable, learning_rate)
        last[:] = graph.get_operations()[-1:]

    with replaced(optimizer, "update_step", update):
        yield


def scaled_gradient(gradient: Any, scale: tf.Tensor | None, *, xla: bool = False) -> Any:
    """Return a gradient, dense or sparse, multiplied by a factor; as it is where there is none.

    A factor is 1 in most steps. There a large gradient is left alone, as one pass over it costs up to 1% of a step; not
    where a condition costs more than the pass: under XLA, which fuses that into the update, and on an accelerator.
    """
    if scale is None:
        return gradient
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient

    def scaled() -> tf.Tensor:
        return values * tf.cast(scale, values.dtype)

    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(scaled(), gradient.indices, gradient.dense_shape)
    large = (values.shape.num_elements() or 0) >= SEQUENCE_FROM
    if xla or tf.executing_eagerly() or not large or not stays_one_operation():
        return scaled()
    return rare_cond(tf.equal(scale, 1.0), lambda: values, scaled)


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
def fused(
    optimizer: keras.optimizers.Optimizer, scale: tf.Tensor | None = None, *, xla: bool = False
) -> Iterator[None]:
    """Let an optimizer update dense gradients through a fused kernel, and sparse ones as it does.

    The arithmetic is Keras' in another order of rounding, so that weights differ in their last bits.

    Args:
        optimizer: One that `require_fusible` admits, built.
        scale: What every gradient is multiplied by, or None.
        xla: Whether XLA compiles the update.
    """
    kernel, update_step = _KERNELS[type(optimizer)](optimizer), optimizer.update_step

    def update(gradient, variable, learning_rate):
        gradient = scaled_gradient(gradient, scale, xla=xla)
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
    return variable_of(variable).handle


_KERNELS: dict[type, Callable[[Any], Kernel]] = {
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.SGD: _sgd,
}


def schedule_of(model: keras.Model) -> tuple[Any, int] | None:
    """Return the schedule of a model's first optimizer and the batch at which it is read next, or None without one."""
    optimizer = leaves(optimizers_of(model)[0])[0]
    rate = getattr(optimizer, "_learning_rate", None)
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return None
    return rate, int(optimizer._iterations)  # `iterations` counts updates, which may take several batches


def own_schedule(optimizer: keras.optimizers.Optimizer) -> Any | None:
    """Return the schedule of an optimizer if its class is none of Keras', so that no config need describe it."""
    rate = getattr(optimizer, "_learning_rate", None)
    is_own = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return rate if is_own and not type(rate).__module__.startswith("keras.") else None


def config_without_schedule(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the config of an optimizer whose schedule may have none, but for its learning rate."""
    with replaced(optimizer, "_learning_rate", None):
        return {**optimizer.get_config(), "learning_rate": None}


def places_of(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> list[int]:
    """Return at which places in a list the variables stand that an optimizer updates."""
    own = {optimizer._var_key(variable) for variable in optimizer._trainable_variables}
    return [place for place, variable in enumerate(variables) if optimizer._var_key(variable) in own]


def loss_scale(optimizer: keras.optimizers.Optimizer) -> tf.Tensor | float:
    """Return what the gradients handed to `optimizer.apply` are multiplied by."""
    if hasattr(optimizer, "dynamic_scale"):
        return tf.convert_to_tensor(optimizer.dynamic_scale)
    return 1.0 if optimizer.loss_scale_factor is None else float(optimizer.loss_scale_factor)


def lower_scale(optimizer: keras.optimizers.Optimizer) -> Callable[[], None] | None:
    """Return what a loss scaler does when it meets a gradient that is not finite, or None without a scaler."""
    return getattr(optimizer, "_stateful_handle_non_finite_grads", None)


def accumulated(
    optimizers: list[keras.optimizers.Optimizer],
    gradients: list[Any],
    variables: list[Any],
    unit: tf.Tensor | float,
) -> list[Any]:
    """Return the mean over the accumulated micro-batches and this one; the gradient itself without accumulation.

    What is held is unscaled; the mean comes multiplied by `unit`, as the gradients do.
    """
    held = {}
    for optimizer in optimizers:
        if count := optimizer.gradient_accumulation_steps:
            accumulators = zip(optimizer._trainable_variables, _accumulators(optimizer), strict=True)
            held |= {optimizer._var_key(variable): (accumulator, count) for variable, accumulator in accumulators}

    def mean(gradient: Any, variable: Any) -> Any:
        if (key := optimizers[0]._var_key(variable)) not in held:
            return gradient
        accumulator, count = held[key]
        return (tf.convert_to_tensor(gradient) + accumulator * unit) / count

    return [mean(gradient, variable) for gradient, variable in zip(gradients, variables, strict=True)]


def completes_update(optimizers: list[keras.optimizers.Optimizer], variables: list[Any]) -> list[tf.Tensor]:
    """Return for each variable, as bool scalars, whether the next gradient that is applied updates it."""
    of_variable = {}
    for optimizer in optimizers:
        count = optimizer.gradient_accumulation_steps or 1
        complete = tf.equal((tf.convert_to_tensor(optimizer._iterations) + 1) % count, 0)
        of_variable |= dict.fromkeys(map(optimizer._var_key, optimizer._trainable_variables), complete)
    always = tf.constant(True)
    return [of_variable.get(optimizers[0]._var_key(variable), always) for variable in variables]


def _accumulators(optimizer: keras.optimizers.Optimizer) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(variable) for variable in optimizer._accumulated_gradients]


@contextlib.contextmanager
def already_summed(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Keep an update from summing over the replicas gradients that were summed before."""
    with replaced(optimizer, "_all_reduce_sum_gradients", list):
        yield


def learning_rates(model: keras.Model) -> dict[str, float]:
    """Return the learning rates that the model's optimizers have now, those of schedules too.

    They are named by the number of the optimizer on the model, and of the one that updates weights within it.
    """
    return {
        f"{number}/{index}": float(tf.convert_to_tensor(leaf.learning_rate))
        for number, optimizer in enumerate(optimizers_of(model))
        for index, leaf in enumerate(leaves(optimizer))
    }


def capped_rate(optimizer: keras.optimizers.Optimizer, cap: tf.Variable) -> tf.Tensor:
    """Return the learning rate of the step, that of a schedule too, within a bound; an infinite one changes no bit.

    To be read outside of a condition: within one, TensorFlow folds the constants of a schedule in another order.
    """
    rate = tf.convert_to_tensor(optimizer._get_current_learning_rate())
    return tf.minimum(rate, tf.cast(cap, rate.dtype))


def rate_variable(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the variable in which an optimizer keeps its learning rate; the schedule where it has one."""
    return optimizer._learning_rate


@contextlib.contextmanager
def rate_replaced(optimizer: keras.optimizers.Optimizer, rate: tf.Tensor) -> Iterator[None]:
    """Let a learning rate stand in for the optimizer's own wherever it is read."""
    with replaced(optimizer, "_get_current_learning_rate", lambda: rate):
        yield


@contextlib.contextmanager
def rate_multiplied(optimizer: keras.optimizers.Optimizer, factor: tf.Variable) -> Iterator[None]:
    """Multiply the learning rate, that of a schedule too, wherever it is read; a negative factor is minus the rate."""
    read = optimizer._get_current_learning_rate

    def multiplied() -> tf.Tensor:
        rate = tf.convert_to_tensor(read())
        return tf.cast(tf.where(factor < 0, -factor, tf.cast(rate, factor.dtype) * factor), rate.dtype)

    with replaced(optimizer, "_get_current_learning_rate", multiplied):
        yield


def initial_slots(optimizer: keras.optimizers.Optimizer) -> list[tuple[Any, Any]]:
    """Return what an optimizer remembers, its count of steps too, each variable with the value that it begins with."""
    rates = {id(rate_variable(leaf)) for leaf in leaves(optimizer)}
    fresh = unbuilt_copy(optimizer)
    if optimizer.built:
        fresh.build([variable for leaf in leaves(optimizer) for variable in leaf._trainable_variables])
    pairs = zip(optimizer.variables, fresh.variables, strict=False)
    return [(own, np.array(new)) for own, new in pairs if id(own) not in rates and own.shape == new.shape]
