"""Capture in a step that really runs the outputs of layers, the gradients that arrive there, and the loss."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.keras_private import replaced, sublayers
from gradrecipes.compat.tensorflow_private import current_graph, targets_reported, with_arriving_gradient
from gradrecipes.gradients.norms import as_float32

Intercept = Callable[[keras.layers.Layer, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextlib.contextmanager
def calls_intercepted(layers: Sequence[keras.layers.Layer], intercept: Intercept) -> Iterator[None]:
    """Let `intercept(layer, call, args, kwargs)` stand in for every call of the layers within the `with` block."""

    def intercepted(layer: keras.layers.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_intercepted(*args: Any, **kwargs: Any) -> Any:
            return intercept(layer, call, args, kwargs)

        return call_intercepted

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer, "call", intercepted(layer, layer.call)))
        yield


class ActivationCapture:
    """Collect, while a train step is traced, the output tensors of layers and their gradients.

    Outputs pass through an identity that sees the gradient that arrives there; nothing is computed anew. Layers that
    run inside a loop of their own (the cell of an RNN) are not captured.

    Args:
        model: The model whose layers are captured.
    """

    def __init__(self, model: keras.Model):
        self._layers = [layer for layer in sublayers(model) if not isinstance(layer, keras.layers.InputLayer)]
        self._of_thread = threading.local()  # each replica of a strategy is traced in a thread of its own

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Shadow the layers' `call` within the `with` block; what runs in `capturing` there is captured."""
        with calls_intercepted(self._layers, self._call):
            yield

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Capture every layer that is called within the `with` block."""
        self._of_thread.captured = {}
        self._of_thread.graph = current_graph()
        try:
            yield
        finally:
            self._of_thread.graph = None

    @property
    def _captured(self) -> dict[int, dict[str, Any]]:
        return self._of_thread.captured

    def _call(self, layer: keras.layers.Layer, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        # A layer that is called again: its first call stands for it.
        if not is_floating(output) or not self._is_here() or id(layer) in self._captured:
            return output
        entered = next((one for one in keras.tree.flatten(args) if is_floating(one)), None)
        captured = self._captured[id(layer)] = {"input": entered, "output": output, "gradient": None}

        def receive(gradient: Any) -> None:
            if captured["gradient"] is None and self._is_here():
                captured["gradient"] = gradient

        return with_arriving_gradient(output, receive)

    def _is_here(self) -> bool:
        return getattr(self._of_thread, "graph", None) is current_graph()

    def layers(self) -> list[keras.layers.Layer]:
        """Return the layers that were captured, in the order in which they were called."""
        by_id = {id(layer): layer for layer in self._layers}
        return [by_id[key] for key in self._captured]

    def tensors(
        self, layers: Sequence[keras.layers.Layer] | None = None
    ) -> list[tuple[tf.Tensor | None, tf.Tensor | None]]:
        """Return (output, gradient with respect to it) of each layer that was captured.

        Args:
            layers: The layers that are asked for instead; (None, None) stands for one that was not captured.
        """
        nothing = {"output": None, "gradient": None}
        found = [self._captured.get(id(layer), nothing) for layer in (self.layers() if layers is None else layers)]
        return [(captured["output"], captured["gradient"]) for captured in found]

    def inputs(self) -> list[tf.Tensor | None]:
        """Return the first floating-point input of each layer that was captured, or None."""
        return [captured["input"] for captured in self._captured.values()]


def is_floating(tensor: Any) -> bool:
    """Return whether a value is a tensor of a floating dtype, which can have a gradient."""
    return isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating


class LossCapture:
    """Keep, while a train step is traced, the tensors in which its loss can be seen.

    That is what `compute_loss` returns. A train step of the user's own that does without it shows its loss in two other
    places: it returns it, as it is or as the running mean of a `keras.metrics.Mean`, whose last update is the value of
    the batch; and a tape differentiates it with respect to the variables that are updated.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._of_thread = threading.local()  # each replica of a strategy is traced in a thread of its own

    def begin(self) -> None:
        """Forget the step before."""
        here = self._of_thread
        here.graph, here.computed = current_graph(), None
        here.targets, here.updates, here.results = [], {}, []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Capture what happens within the `with` block."""
        model = self._model
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(model, "compute_loss", self._keeping_loss(model.compute_loss)))
            if keras_private.has_own_train_step(model):
                stack.enter_context(targets_reported(self._keep_target))
                for metric in _metrics_of(model):
                    stack.enter_context(replaced(metric, "update_state", self._keeping_update(metric)))
                    stack.enter_context(replaced(metric, "result", self._keeping_result(metric)))
            yield

    def at_update(self, variables: list[Any], loss_scale: tf.Tensor | float, *, alone: bool) -> tf.Tensor | None:
        """Return the loss, a scalar, when gradients are about to be applied; None where it is not seen.

        Args:
            variables: What is updated.
            loss_scale: What the gradients come multiplied by.
            alone: Whether no other optimizer applies gradients in the step: each has a loss of its own else.
        """
        if self._of_thread.computed is not None or not alone:
            return self._of_thread.computed
        updated = {id(variable) for variable in variables}
        for target, sources in reversed(self._of_thread.targets):
            if not updated.isdisjoint(sources):
                loss = self._scalar(target)
                is_scaled = loss is not None and (tf.is_tensor(loss_scale) or loss_scale != 1.0)
                return loss / tf.cast(loss_scale, loss.dtype) if is_scaled else loss
        return None

    def of_step(self, logs: Any) -> tf.Tensor | None:
        """Return the loss that the step returned, a scalar, where nothing else computed it; None without one."""
        if self._of_thread.computed is not None or tf.distribute.has_strategy():
            return None
        if not keras_private.has_own_train_step(self._model):
            return None
        value = logs.get("loss") if isinstance(logs, dict) else logs
        if value is None and isinstance(logs, dict):
            scalars = [one for one in keras.tree.flatten(logs) if _is_floating_scalar(one)]
            value = scalars[0] if len(scalars) == 1 else None
        if not _is_floating_scalar(value):
            return None
        metric = next((metric for result, metric in self._of_thread.results if result is value), None)
        return self._scalar(value) if metric is None else self._scalar(self._of_thread.updates.get(id(metric)))

    def _scalar(self, value: Any) -> tf.Tensor | None:
        if not tf.is_tensor(value) or not value.dtype.is_floating or current_graph() is not self._of_thread.graph:
            return None
        graph = None if tf.executing_eagerly() else self._of_thread.graph
        if getattr(value, "graph", None) is not graph:
            return None  # of a function that the step calls
        return value if value.shape.rank == 0 else tf.reduce_mean(as_float32(value))

    def _keeping_loss(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute_loss)
        def compute_and_keep(*args, **kwargs):
            loss = compute_loss(*args, **kwargs)
            if tf.is_tensor(loss) and current_graph() is self._of_thread.graph:
                self._of_thread.computed = loss if loss.shape.rank == 0 else tf.reduce_mean(as_float32(loss))
            return loss  # of a loss of each sample, Keras too logs the mean

        return compute_and_keep

    def _keep_target(self, target: Any, sources: Any) -> None:
        if hasattr(self._of_thread, "targets") and tf.is_tensor(target):
            self._of_thread.targets.append((target, {id(source) for source in keras.tree.flatten(sources)}))

    def _keeping_update(self, metric: keras.metrics.Metric) -> Callable[..., Any]:
        update_state = metric.update_state

        @functools.wraps(update_state)
        def update_and_keep(*args, **kwargs):
            values = args[0] if args else kwargs.get("values")
            is_mean = type(metric) is keras.metrics.Mean  # a class derived from it may turn the values into others
            weight = args[1] if len(args) > 1 else kwargs.get("sample_weight")
            if is_mean and (weight is None or getattr(values, "shape", None) == ()):
                self._of_thread.updates[id(metric)] = values
            return update_state(*args, **kwargs)

        return update_and_keep

    def _keeping_result(self, metric: keras.metrics.Metric) -> Callable[..., Any]:
        result = metric.result

        @functools.wraps(result)
        def keep_result(*args, **kwargs):
            value = result(*args, **kwargs)
            self._of_thread.results.append((value, metric))
            return value

        return keep_result


def _is_floating_scalar(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype.is_floating and value.shape.rank == 0


def _metrics_of(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics of a model, those too that it holds and does not list."""
    held = [*model.metrics, *vars(model).values()]
    return list({id(one): one for one in held if isinstance(one, keras.metrics.Metric)}.values())
