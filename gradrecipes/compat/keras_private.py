"""Private names of Keras that the package relies on, and which fit calls; a test fails when a release moves one."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import keras
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
        "_loss_tracker",
        "_get_metrics_result_or_logs",
    ),
}

# Keras 3.7 leaves each replica the mean over its own samples, so that the sum of gradients grows with the replicas.
DIVIDES_LOSS_AMONG_REPLICAS = hasattr(keras_loss, "scale_loss_for_distribution")


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Shadow an attribute of one instance or module, past Keras' attribute tracking, and take the shadow away again."""
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


@contextlib.contextmanager
def announced(owner: Any, names: Iterable[str], calls: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Call something before each of these methods of an instance, but for those that one of the calls makes."""
    looking = False

    def announcing(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def look(*args: Any, **kwargs: Any) -> Any:
            nonlocal looking
            if not looking:
                looking = True
                try:
                    for call in calls:
                        call()
                finally:
                    looking = False
            return method(*args, **kwargs)

        return look

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(replaced(owner, name, announcing(getattr(owner, name))))
        yield


@contextlib.contextmanager
def with_epoch_logs(model: keras.Model, extended: Callable[[Any], Any]) -> Iterator[None]:
    """Let `fit` make the logs of an epoch of what this returns for the logs of its last step."""
    made = model._get_metrics_result_or_logs
    with replaced(model, "_get_metrics_result_or_logs", lambda logs: made(extended(logs))):
        yield


def reads_batch_logs(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Return whether a callback looks at the logs of every step; True where the callbacks are not known."""
    if callback_list is None:
        return True
    hooks = [getattr(one, name) for one in callback_list.callbacks for name in ("on_train_batch_end", "on_batch_end")]
    base = keras.callbacks.Callback
    return any(getattr(hook, "__func__", None) not in (base.on_train_batch_end, base.on_batch_end) for hook in hooks)


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
    """Return every layer within a model, at any depth, in the order of attachment, the model itself left out.

    Keras' own walk, `_flatten_layers`, reverses the order within each layer that holds others.
    """
    found: dict[int, keras.layers.Layer] = {}
    pending = [model]
    while pending:
        layer = pending.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            pending += reversed(layer._layers)
    return list(found.values())[1:]


def holds_layers(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has layers of its own."""
    return bool(layer._layers)


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Return what a loss object hands to its function, by name; nothing for a loss that has none."""
    return dict(getattr(loss, "_fn_kwargs", None) or {})


def own_variables(layer: keras.layers.Layer) -> list[Any]:
    """Return the variables of a layer itself that were made to be trained."""
    return list(layer._trainable_variables)


def frozen_variables(layer: keras.layers.Layer) -> list[Any]:
    """Return the variables of a layer itself that were made to be trained, and are not."""
    return [one for one in own_variables(layer) if not (one.trainable and layer._trainable)]


@contextlib.contextmanager
def unfrozen(model: keras.Model) -> Iterator[None]:
    """Train all weights of a model meanwhile, by a fresh copy of its only optimizer."""
    layers = [model, *sublayers(model)]
    flags = [(layer, layer._trainable, [(one, one.trainable) for one in own_variables(layer)]) for layer in layers]
    optimizer = unbuilt_copy(model.optimizer)
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


def batches_of_an_update(model: keras.Model) -> int:
    """Return how many batches an optimizer gathers before it updates the weights; the most of several optimizers."""
    return max([one.gradient_accumulation_steps or 1 for kept in optimizers_of(model) for one in leaves(kept)] or [1])


def _within(held: Iterable[Any], depth: int = 3) -> Iterator[Any]:
    """Go through what attributes hold, in lists and dicts too: as many deep as a person writes them."""
    for one in held:
        if not isinstance(one, list | tuple | dict):
            yield one
        elif depth:
            yield from _within(one.values() if isinstance(one, dict) else one, depth - 1)


def unbuilt_copy(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return an optimizer with the same settings that has updated nothing yet."""
    return type(optimizer).from_config(optimizer.get_config())


def leaves(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that update weights: inside a loss scaler, or inside an optimizer of several."""
    if hasattr(optimizer, "inner_optimizer"):
        return leaves(optimizer.inner_optimizer)
    return list(getattr(optimizer, "optimizers", None) or [optimizer])


_CALLERS = 6  # frames between a method of a list of callbacks and what a callback does in it


def calling_list(method: str) -> keras.callbacks.CallbackList | None:
    """Return the list of callbacks whose method of this name called, through a few others, or None."""
    for _, frame in zip(range(_CALLERS), _stack(), strict=False):
        if frame.f_code.co_name == method:
            caller = frame.f_locals.get("self")
            if isinstance(caller, keras.callbacks.CallbackList):
                return caller
    return None


class FitCaller:
    """Return whether the fit of a list of callbacks calls, without a search of the stack at every step.

    Args:
        callback_list: Returns the list, or None where it is not known.
    """

    def __init__(self, callback_list: Callable[[], Any]):
        self._list = callback_list
        self._known: tuple[int, Any] | None = None  # the frame that called last, if it is the fit's own

    def calls(self) -> bool:
        """Return whether the fit called the function that calls this, and not another fit or `train_on_batch`."""
        frame = sys._getframe(2)
        if self._known == (id(frame), frame.f_code):
            return True
        callback_list = self._list()
        if callback_list is not None and _list_of(frame) is callback_list:
            self._known = id(frame), frame.f_code
            return True
        return _called_by_fit(callback_list)


def runs_in_fit(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Return whether a method of Keras that trains holds this list; else a loop of the user's own drives it."""
    return any(
        _list_of(frame) is callback_list and frame.f_globals.get("__name__", "").startswith("keras.")
        for frame in _stack()
    )


def called_by_a_fit() -> bool:
    """Return whether a `fit` of Keras is among those that call."""
    return any(
        _list_of(frame) is not None and frame.f_globals.get("__name__", "").startswith("keras.") for frame in _stack()
    )


def _called_by_fit(callback_list: keras.callbacks.CallbackList | None) -> bool:
    for frame in _stack():
        if frame.f_code.co_name == "train_on_batch":
            return False
        found = _list_of(frame)
        if found is not None:
            return found is callback_list
    return True  # a loop of the user's own, which keeps its callbacks elsewhere


def is_running(callback_list: keras.callbacks.CallbackList | None) -> bool:
    """Return whether the fit of this list is among those that call; one that broke off is not."""
    return callback_list is not None and any(_list_of(frame) is callback_list for frame in _stack())


def _list_of(frame: FrameType) -> keras.callbacks.CallbackList | None:
    if "callbacks" not in frame.f_code.co_varnames:
        return None
    found = frame.f_locals.get("callbacks")
    return found if isinstance(found, keras.callbacks.CallbackList) else None


def _stack() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
