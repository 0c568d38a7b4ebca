"""The table of an autopsy: one line for every layer, and how far a fault got."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradrecipes.core.trace.autopsy import LayerReading, listed
from gradrecipes.training.autopsy.arrays import Numbers
from gradrecipes.training.autopsy.call_recorder import Call
from gradrecipes.training.autopsy.forward import owners_of
from gradrecipes.training.autopsy.step import Step


def layer_readings(step: Step) -> list[LayerReading]:
    """Return a reading of every layer within the model that was captured, in the order in which they finished."""
    calls: dict[str, list[Call]] = {}
    for captured in step.recorder.forward:
        call = captured.call
        if not captured.enters and call.parent is not None and call not in calls.setdefault(call.name, []):
            calls[call.name].append(call)
    weights = _weight_gradients(step)
    return [_reading(name, made, step.scale, weights.get(name, math.nan)) for name, made in calls.items()]


def what_was_reached(step: Step) -> list[str]:
    """Return, in sentences, which outputs, losses and gradients are not finite."""
    sentences = []
    layers = [reading for reading in layer_readings(step) if reading.nonfinite_share > 0]
    if layers:
        last = f" to {layers[-1].layer}" if len(layers) > 1 else ""
        sentences.append(f"Outputs that are not finite: {len(layers)} layers, from {layers[0].layer}{last}.")
    if step.loss is not None and not math.isfinite(step.loss):
        hurt = [sample for sample, loss in enumerate(step.sample_losses) if not math.isfinite(loss)]
        sentences.append(f"The loss is {step.loss}" + (f", by {listed(hurt)}." if hurt else "."))
    if broken := step.broken_gradients:
        sentences.append(f"Gradients that are not finite: {len(broken)} of {len(step.variables)} weights.")
    return sentences


def _reading(name: str, calls: list[Call], scale: float, weight_gradient_norm: float) -> LayerReading:
    inputs = [captured.numbers for call in calls for captured in call.inputs]
    outputs = [captured.numbers for call in calls for captured in call.outputs]
    gradients = [captured.gradient for call in calls for captured in call.outputs if captured.gradient is not None]
    size = sum(numbers.size for numbers in outputs)
    return LayerReading(
        layer=name,
        kind=type(calls[0].layer).__name__,
        dtype=outputs[0].dtype,
        input_rms=_rms(inputs),
        output_rms=_rms(outputs),
        output_max=max(numbers.largest for numbers in outputs),
        nonfinite_share=sum(numbers.bad for numbers in outputs) / size if size else 0.0,
        output_gradient_norm=_norm(gradients) / scale,
        weight_gradient_norm=weight_gradient_norm,
    )


def _weight_gradients(step: Step) -> dict[str, float]:
    owners = owners_of(step.model)
    by_layer: dict[str, list[Numbers]] = {}
    for variable, numbers in zip(step.variables, step.numbers, strict=False):
        if numbers is not None:
            by_layer.setdefault(owners.get(id(variable), ""), []).append(numbers)
    return {name: _norm(numbers) / step.scale for name, numbers in by_layer.items()}


def _rms(read: Iterable[Numbers]) -> float:
    read = list(read)
    finite = sum(numbers.size - numbers.bad for numbers in read)
    return math.sqrt(sum(numbers.squares for numbers in read) / finite) if finite else math.nan


def _norm(read: list[Numbers]) -> float:
    if not read:
        return math.nan
    if any(numbers.found for numbers in read):
        return math.inf
    return math.sqrt(sum(numbers.squares for numbers in read))
