"""Record one eager training step: what enters and leaves every call of every layer, and the gradients there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.compat.tensorflow_private import with_arriving_gradient
from gradrecipes.training.autopsy.arrays import Numbers, numbers_of
from gradrecipes.training.step.capture import calls_intercepted, is_floating


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
    inputs: list[CapturedTensor] = field(default_factory=list)
    outputs: list[CapturedTensor] = field(default_factory=list)
    children: list[Call] = field(default_factory=list)
    finished: bool = False


@dataclass(eq=False)
class CapturedTensor:
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
    source: CapturedTensor | None = None
    gradient: Numbers | None = None


class CallRecorder:
    """Record, in the order in which they happen, all tensors between layers and all gradients there.

    Every tensor passes through an identity; what a traced function computes inside itself cannot be captured.

    Args:
        model: The model; it is captured as a layer too.
        batch_size: Samples in the batch.
    """

    def __init__(self, model: keras.Model, batch_size: int):
        self._layers = [model, *sublayers(model)]
        self._names = unique_names(self._layers)
        self._batch_size = batch_size
        self._counts: dict[int, int] = {}
        self._captured_as: dict[
            int, tuple[tf.Tensor, CapturedTensor]
        ] = {}  # the tensor is held, so that its id stays its own
        self._open: list[Call] = []
        self._paused = False
        self.calls: list[Call] = []
        self.forward: list[CapturedTensor] = []
        self.backward: list[CapturedTensor] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Hear every call within the `with` block."""
        layers = [layer for layer in self._layers if not isinstance(layer, keras.layers.InputLayer)]
        with calls_intercepted(layers, self._record):
            yield
        self._captured_as.clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out further backward passes through the same step."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @property
    def innermost(self) -> Call | None:
        """The call that an exception left unfinished, the innermost one."""
        return next((call for call in reversed(self.calls) if not call.finished), None)

    def _record(self, layer: keras.layers.Layer, original: Any, args: Any, kwargs: Any) -> Any:
        if not tf.executing_eagerly():
            return original(*args, **kwargs)
        number = self._counts.get(id(layer), 0)
        self._counts[id(layer)] = number + 1
        parent = self._open[-1] if self._open else None
        call = Call(layer, self._names[id(layer)], number, parent)
        self.calls.append(call)
        if parent is not None:
            parent.children.append(call)
        args, kwargs = self._capture_all((args, kwargs), call, enters=True)
        self._open.append(call)
        try:
            outputs = original(*args, **kwargs)
        finally:
            self._open.pop()
        outputs = self._capture_all(outputs, call, enters=False)
        call.finished = True
        return outputs

    def _capture_all(self, structure: Any, call: Call, *, enters: bool) -> Any:
        def capture(value):
            return self._capture(value, call, enters=enters) if is_floating(value) else value

        return keras.tree.map_structure(capture, structure)

    def _capture(self, tensor: tf.Tensor, call: Call, *, enters: bool) -> tf.Tensor:
        source = self._captured_as.get(id(tensor), (None, None))[1]
        captured = CapturedTensor(call, enters, numbers_of(tensor, self._batch_size), source)
        (call.inputs if enters else call.outputs).append(captured)
        self.forward.append(captured)

        def receive(gradient: Any) -> None:
            if not self._paused and captured.gradient is None:
                captured.gradient = numbers_of(gradient, self._batch_size)
                self.backward.append(captured)

        passed = with_arriving_gradient(tensor, receive)
        self._captured_as[id(passed)] = (passed, captured)
        return passed


def origin(captured: CapturedTensor) -> CapturedTensor:
    """Return where a tensor was made: the output of the innermost call that it came from unchanged."""
    while captured.source is not None:
        captured = captured.source
    return captured


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
