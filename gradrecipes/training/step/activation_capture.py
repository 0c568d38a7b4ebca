"""Listen to the outputs of layers, and to the gradients with respect to them, in the step that really runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.graphs import current_graph
from gradrecipes.compat.keras_private import replaced, sublayers


class LayerTaps:
    """Collect, while a train step is traced, the output tensors of layers and their gradients.

    Outputs pass through an identity whose gradient function sees the gradient that arrives there; nothing
    is computed anew. Layers that run inside a loop of their own (the cell of an RNN) cannot be heard.

    Args:
        model: The model whose layers are heard.
    """

    def __init__(self, model: keras.Model):
        self._layers = [layer for layer in sublayers(model) if not isinstance(layer, keras.layers.InputLayer)]
        self._of_thread = threading.local()  # each replica of a strategy is traced in a thread of its own

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Shadow the layers' `call` within the `with` block; what runs in `listening` there is heard."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(replaced(layer, "call", self._tapped(layer)))
            yield

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear every layer that is called within the `with` block."""
        self._of_thread.heard = {}
        self._of_thread.graph = current_graph()
        try:
            yield
        finally:
            self._of_thread.graph = None

    @property
    def _heard(self) -> dict[int, dict[str, Any]]:
        return self._of_thread.heard

    def _tapped(self, layer: keras.layers.Layer):
        call = layer.call

        def call_and_listen(*args, **kwargs):
            output = call(*args, **kwargs)
            if is_heard(output) and self._is_here():
                return self._tap(layer, output, next((one for one in keras.tree.flatten(args) if is_heard(one)), None))
            return output

        return call_and_listen

    def _is_here(self) -> bool:
        return getattr(self._of_thread, "graph", None) is current_graph()

    def _tap(self, layer: keras.layers.Layer, output: tf.Tensor, entered: tf.Tensor | None) -> tf.Tensor:
        if id(layer) in self._heard:  # a layer that is called again: its first call stands for it
            return output
        heard = self._heard[id(layer)] = {"input": entered, "output": output, "gradient": None}

        @tf.custom_gradient
        def listen(tensor):
            def backward(gradient):
                if heard["gradient"] is None and self._is_here():
                    heard["gradient"] = gradient
                return gradient

            return tf.identity(tensor), backward

        heard_output = listen(output)
        for name, value in vars(output).items():
            if name.startswith("_keras"):  # the logits behind a softmax, for one: Keras' losses look for them
                setattr(heard_output, name, value)
        return heard_output

    def layers(self) -> list[keras.layers.Layer]:
        """Return the layers that were heard, in the order in which they were called."""
        by_id = {id(layer): layer for layer in self._layers}
        return [by_id[key] for key in self._heard]

    def tensors(
        self, layers: Sequence[keras.layers.Layer] | None = None
    ) -> list[tuple[tf.Tensor | None, tf.Tensor | None]]:
        """Return (output, gradient with respect to it) of each layer that was heard.

        Args:
            layers: The layers that are asked for instead; (None, None) stands for one that was not heard.
        """
        nothing = {"output": None, "gradient": None}
        found = [self._heard.get(id(layer), nothing) for layer in (self.layers() if layers is None else layers)]
        return [(heard["output"], heard["gradient"]) for heard in found]

    def inputs(self) -> list[tf.Tensor | None]:
        """Return the first floating-point input of each layer that was heard, or None."""
        return [heard["input"] for heard in self._heard.values()]


def is_heard(tensor: Any) -> bool:
    """Say whether a tensor is of the kind that is listened to."""
    return isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating
