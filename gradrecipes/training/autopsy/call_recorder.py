"""Listen to one eager training step: what enters and leaves every call of every layer, and the gradients there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import replaced, sublayers
from gradrecipes.training.autopsy.arrays import Numbers, numbers_of


@dataclass(eq=False)
class Call:
    """One call of one layer.

    Args:
        layer: The layer.
        name: Its name, the path where several layers share it.
        number: How often the layer was called before; for the cell of an RNN, the time step.
        parent: The call within which it ran, or None for the model's.
    """

    layer: keras.layers.Layer
    name: str
    number: int
    parent: Call | None
    inputs: list[Heard] = field(default_factory=list)
    outputs: list[Heard] = field(default_factory=list)
    children: list[Call] = field(default_factory=list)
    finished: bool = False


@dataclass(eq=False)
class Heard:
    """One tensor on its way into or out of a call.

    Args:
        call: The call.
        enters: Whether it goes in.
        numbers: What it is.
        source: Where it left another call or entered the enclosing one, if it came unchanged from there.
        gradient: What the gradient is that arrived here, still multiplied by the loss scale; None if none came.
    """

    call: Call
    enters: bool
    numbers: Numbers
    source: Heard | None = None
    gradient: Numbers | None = None


class Hearing:
    """Record, in the order in which they happen, all tensors between layers and all gradients there.

    Every tensor passes through an identity; what a traced function computes inside itself cannot be heard.

    Args:
        model: The model; it is heard as a layer too.
        batch_size: Samples in the batch.
    """

    def __init__(self, model: keras.Model, batch_size: int):
        self._layers = [model, *sublayers(model)]
        self._names = unique_names(self._layers)
        self._batch_size = batch_size
        self._counts: dict[int, int] = {}
        self._heard_as: dict[int, tuple[tf.Tensor, Heard]] = {}  # the tensor is held, so that its id stays its own
        self._open: list[Call] = []
        self._deaf = False
        self.calls: list[Call] = []
        self.forward: list[Heard] = []
        self.backward: list[Heard] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Hear every call within the `with` block."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                if not isinstance(layer, keras.layers.InputLayer):
                    stack.enter_context(replaced(layer, "call", self._tapped(layer)))
            yield
        self._heard_as.clear()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Let further backward passes through the same step go unheard."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    @property
    def innermost(self) -> Call | None:
        """The call that an exception left unfinished, the innermost one."""
        return next((call for call in reversed(self.calls) if not call.finished), None)

    def _tapped(self, layer: keras.layers.Layer):
        original = layer.call

        def call_and_listen(*args, **kwargs):
            if not tf.executing_eagerly():
                return original(*args, **kwargs)
            number = self._counts.get(id(layer), 0)
            self._counts[id(layer)] = number + 1
            parent = self._open[-1] if self._open else None
            call = Call(layer, self._names[id(layer)], number, parent)
            self.calls.append(call)
            if parent is not None:
                parent.children.append(call)
            args, kwargs = self._tap((args, kwargs), call, enters=True)
            self._open.append(call)
            try:
                outputs = original(*args, **kwargs)
            finally:
                self._open.pop()
            outputs = self._tap(outputs, call, enters=False)
            call.finished = True
            return outputs

        return call_and_listen

    def _tap(self, structure: Any, call: Call, *, enters: bool) -> Any:
        def tap(value):
            if not isinstance(value, tf.Tensor) or not value.dtype.is_floating:
                return value
            return self._listened(value, call, enters=enters)

        return keras.tree.map_structure(tap, structure)

    def _listened(self, tensor: tf.Tensor, call: Call, *, enters: bool) -> tf.Tensor:
        source = self._heard_as.get(id(tensor), (None, None))[1]
        heard = Heard(call, enters, numbers_of(tensor, self._batch_size), source)
        (call.inputs if enters else call.outputs).append(heard)
        self.forward.append(heard)

        @tf.custom_gradient
        def listen(value):
            def backward(gradient):
                if not self._deaf and heard.gradient is None:
                    heard.gradient = numbers_of(gradient, self._batch_size)
                    self.backward.append(heard)
                return gradient

            return tf.identity(value), backward

        listened = listen(tensor)
        for name, value in vars(tensor).items():
            if name.startswith("_keras"):  # masks, and the logits behind a softmax
                setattr(listened, name, value)
        self._heard_as[id(listened)] = (listened, heard)
        return listened


def origin(heard: Heard) -> Heard:
    """Return where a tensor was made: the output of the innermost call that it came from unchanged."""
    while heard.source is not None:
        heard = heard.source
    return heard


def time_step(call: Call) -> int | None:
    """Return at which step of an RNN's loop a call happened, from 0; None outside of such a loop."""
    while call.parent is not None and not hasattr(call.parent.layer, "cell"):
        call = call.parent
    if call.parent is None:
        return None
    place = [one for one in call.parent.children if one.layer is call.layer].index(call)
    # Before it begins to loop, Keras calls the cell once to learn the shape of its output.
    return place if getattr(call.parent.layer, "unroll", False) else max(0, place - 1)


def unique_names(layers: list[keras.layers.Layer]) -> dict[int, str]:
    """Return a name for each layer by its id: its own, or its path where several share it."""
    names = [layer.name for layer in layers]
    return {id(layer): (layer.path or layer.name) if names.count(layer.name) > 1 else layer.name for layer in layers}
