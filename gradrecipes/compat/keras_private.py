"""Every private name of Keras that this package relies on; a test fails loudly when a release moves one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import compute_output_spec
from keras.src.losses import loss as keras_loss

RELIED_ON = {
    keras.optimizers.Optimizer: (
        "_iterations",
        "_backend_update_step",
        "_clip_gradients",
        "_accumulated_gradients",
        "_get_current_learning_rate",
        "_learning_rate",
        "_all_reduce_sum_gradients",
        "_trainable_variables",
        "_var_key",
        "_get_variable_index",
        "update_step",
    ),
    keras.optimizers.Adam: ("_momentums", "_velocities"),
    keras.optimizers.AdamW: ("_momentums", "_velocities"),
    keras.optimizers.LossScaleOptimizer: ("_stateful_handle_non_finite_grads",),
    keras.losses.MeanSquaredError: ("_fn_kwargs",),
    keras.Model: (
        "_layers",
        "_compile_loss",
        "_compile_metrics",
        "_symbolic_build",
        "_maybe_symbolic_build",
        "_flatten_layers",
        "_loss_tracker",
    ),
}

# Keras 3.7 leaves each replica the mean over its own samples, so that the sum of gradients grows with the replicas.
DIVIDES_LOSS_AMONG_REPLICAS = hasattr(keras_loss, "scale_loss_for_distribution")


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Shadow an attribute on one instance, past Keras' attribute tracking, and take the shadow away again."""
    missing = object()
    before = owner.__dict__.get(name, missing)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if before is missing:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before


def compile_identity(model: keras.Model) -> tuple[Any, ...]:
    """Return objects that are all the same as long as a traced train step stays valid."""
    return (
        model.optimizer,
        getattr(model, "_compile_loss", None),
        getattr(model, "_compile_metrics", None),
        model.steps_per_execution,
        model.jit_compile,
        model.run_eagerly,
    )


def same_identity(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Compare what `compile_identity` returned, object by object."""
    if len(one) != len(other):
        return False
    return all(a is b or (isinstance(a, (int, bool)) and a == b) for a, b in zip(one, other, strict=True))


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """Return what the model was compiled with, the user's own objects; None for a `compile` of the user's own."""
    config = getattr(model, "_compile_config", None)
    return None if config is None else dict(config.config)


def compile_train_step(model: keras.Model, train_step: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """Return what `model.make_train_function` would make of another train step; the model stays as it was."""
    before = model.train_function
    with replaced(model, "train_step", train_step):
        type(model).make_train_function(model, force=True)  # past what may stand in for it during a fit
        made = model.train_function
    model.train_function = before
    return made


def build_metrics(model: keras.Model, data: Any) -> None:
    """Create the state of the compiled metrics before the first step, so that it can be read before a step.

    A train step of the user's own may do without `call`, or hand its metrics something else than what `call` returns.
    There, and where the outputs of a subclassed model differ between training and inference, Keras creates them in the
    step.
    """
    if has_own_train_step(model):
        return
    metrics = getattr(model, "_compile_metrics", None)
    loss = getattr(model, "_compile_loss", None)
    unbuilt = [part for part in (metrics, loss) if part is not None and not part.built]
    if unbuilt:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with contextlib.suppress(Exception):
            model._symbolic_build(data_batch=(x, y, sample_weight))


def build_metrics_by_spec(model: keras.Model, spec: Any) -> None:
    """Create the state of the compiled metrics and loss of a built functional model before its step is traced.

    Keras creates it while the step is traced, and TensorFlow traces a function again that has created variables.

    Args:
        model: The model.
        spec: `tf.TensorSpec`s in the structure of a batch; None where it is not known.
    """
    outputs = getattr(getattr(model, "_functional", model), "_outputs_struct", None)
    if spec is None or outputs is None or not model.built:
        return
    if has_own_train_step(model) or model.run_eagerly or tf.distribute.has_strategy():
        return
    if isinstance(outputs, list | tuple) and len(outputs) == 1:
        (outputs,) = outputs  # a functional model returns a single output by itself, even where it was given a list
    for name, compute in (("_compile_metrics", model.compute_metrics), ("_compile_loss", model.compute_loss)):
        part = getattr(model, name, None)
        if part is None or part.built:
            continue
        with contextlib.suppress(Exception):  # what is odd about the batch or a metric, Keras will meet in the step
            batch = keras.tree.map_structure(lambda part: keras.KerasTensor(part.shape, part.dtype.name), spec)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
            compute_output_spec(compute, x, y, outputs, sample_weight=sample_weight)


def has_own_train_step(model: keras.Model) -> bool:
    """Return whether a model's train step was written by its user: neither Keras' nor one of this package."""
    return not type(model).train_step.__module__.startswith(("keras.", "gradrecipes."))


def build_optimizer(model: keras.Model) -> None:
    """Create the slots of a built model's only optimizer, so that no step is traced a second time for their sake.

    A train step of the user's own is let be: it may hand its optimizer other weights, as a GAN's does. Keras' own
    `ScheduleFreeAdamW` trains in a compiled `fit` as it does eagerly only if its slots were made before.
    """
    optimizer, variables = model.optimizer, model.trainable_variables
    if not model.built or optimizer.built or not variables:
        return
    if has_own_train_step(model) or len(optimizers_of(model)) > 1:
        return
    with model.distribute_strategy.scope(), keras.name_scope(optimizer.name):
        optimizer.build(variables)


def weights_without_slots(model: keras.Model) -> list[Any]:
    """Return the trainable weights that the only optimizer of a model does not know: made trainable since it was built.

    `fit` goes on as it was traced, without them, until something traces it anew.
    """
    if has_own_train_step(model) or len(optimizers_of(model)) > 1 or not model.optimizer.built:
        return []
    parts = leaves(model.optimizer)
    known = {leaf._var_key(variable) for leaf in parts for variable in leaf._trainable_variables}
    return [variable for variable in model.trainable_variables if parts[0]._var_key(variable) not in known]


def loss_count(model: keras.Model) -> Any:
    """Return how many samples the running mean of the loss holds, as a variable, or None where there is none."""
    return getattr(getattr(model, "_loss_tracker", None), "count", None)


def sublayers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return every layer within a model, at any depth, the model itself left out."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def holds_layers(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has layers of its own."""
    return bool(layer._layers)


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Return what a loss object hands to its function, by name; nothing for a loss that has none."""
    return dict(getattr(loss, "_fn_kwargs", None) or {})


def frozen_variables(layer: keras.layers.Layer) -> list[Any]:
    """Return the variables of a layer itself that were made to be trained, and are not."""
    return [one for one in layer._trainable_variables if not (one.trainable and layer._trainable)]


@contextlib.contextmanager
def unfrozen(model: keras.Model) -> Iterator[None]:
    """Train all weights of a model meanwhile, by a fresh copy of its only optimizer."""
    layers = [model, *sublayers(model)]
    flags = [
        (layer, layer._trainable, [(one, one.trainable) for one in layer._trainable_variables]) for layer in layers
    ]
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    try:
        for layer, _, variables in flags:
            layer._trainable = True
            for variable, _ in variables:
                variable.trainable = True
        with replaced(model, "optimizer", optimizer):
            yield
    finally:
        for layer, trainable, variables in flags:
            layer._trainable = trainable
            for variable, before in variables:
                variable.trainable = before


def made_by(tensor: Any) -> Any:
    """Return which call of which operation made a symbolic tensor, or None."""
    return getattr(tensor, "_keras_history", None)


def inputs_of(made: Any) -> list[Any]:
    """Return the symbolic tensors that entered the call that `made_by` returned."""
    return list(made.operation._inbound_nodes[made.node_index].input_tensors)


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers of a model: the compiled one, then those it and its `GradientPipeline`s hold."""
    held = _within([getattr(model, "optimizer", None), *vars(model).values()])  # an uncompiled model has none
    found = [one if isinstance(one, keras.layers.Layer) else getattr(one, "optimizer", one) for one in held]
    return list({id(one): one for one in found if isinstance(one, keras.optimizers.Optimizer)}.values())


def _within(held: Iterable[Any], depth: int = 3) -> Iterator[Any]:
    """Go through what attributes hold, in lists and dicts too: as many deep as a person writes them."""
    for one in held:
        if not isinstance(one, list | tuple | dict):
            yield one
        elif depth:
            yield from _within(one.values() if isinstance(one, dict) else one, depth - 1)


def leaves(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that update weights: inside a loss scaler, or inside an optimizer of several."""
    if hasattr(optimizer, "inner_optimizer"):
        return leaves(optimizer.inner_optimizer)
    return list(getattr(optimizer, "optimizers", None) or [optimizer])


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
    """Multiply the learning rate, that of a schedule too, wherever it is read."""
    read = optimizer._get_current_learning_rate

    def multiplied() -> tf.Tensor:
        rate = tf.convert_to_tensor(read())
        return rate * tf.cast(factor, rate.dtype)

    with replaced(optimizer, "_get_current_learning_rate", multiplied):
        yield


def initial_slots(optimizer: keras.optimizers.Optimizer) -> list[tuple[Any, Any]]:
    """Return what an optimizer remembers, its count of steps too, each variable with the value that it begins with."""
    rates = {id(rate_variable(leaf)) for leaf in leaves(optimizer)}
    fresh = type(optimizer).from_config(optimizer.get_config())
    if optimizer.built:
        fresh.build([variable for leaf in leaves(optimizer) for variable in leaf._trainable_variables])
    pairs = zip(optimizer.variables, fresh.variables, strict=False)
    return [(own, np.array(new)) for own, new in pairs if id(own) not in rates and own.shape == new.shape]
