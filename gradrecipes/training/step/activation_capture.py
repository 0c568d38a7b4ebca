"""Capture the outputs of layers, and the gradients with respect to them, in the step that really runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced, sublayers
from gradrecipes.compat.tensorflow_private import current_graph, with_arriving_gradient

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
