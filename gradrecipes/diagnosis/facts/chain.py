"""The stretches of plain chain in a net: growth from layer to layer, as measured and as theory predicts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gradrecipes.core.signal_theory import (
    ACTIVATIONS,
    Activation,
    derivative_moment,
    finite_width_log_std,
    leaky_relu,
    second_moment,
)
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import LayerDescription
from gradrecipes.diagnosis.facts.readings import first_sample, layer_descriptions

WEIGHTED_KINDS = {"Dense", "Conv1D", "Conv2D", "Conv3D"}
ACTIVATION_KINDS = {"Activation", "ReLU", "LeakyReLU", "ELU", "PReLU"}
KINDS_THAT_PASS = {"InputLayer", "Flatten", "Reshape", "Permute", "Cropping2D"}
KINDS_THAT_PASS |= {
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
}
KINDS_THAT_PASS |= {f"{kind}Pooling{d}D" for kind in ("Max", "Average") for d in (1, 2, 3)}
KINDS_THAT_PASS |= {f"{kind}{d}D" for kind in ("ZeroPadding", "UpSampling") for d in (1, 2, 3)}
# Every other kind (normalization, merges, recurrence, embeddings, nested models) ends a stretch.

MEAN_OVER_SPREAD = 3.0  # |mean| * sqrt(fan_in) / std of the weights; random weights have about 1 / sqrt(units)
_LEAKY_RELU_LAYER = leaky_relu(0.3)  # the default of keras.layers.LeakyReLU, unlike that of the function


@dataclass(frozen=True)
class Stage:
    """One weighted layer in a stretch, and its readings at the first sample.

    Args:
        name: Name of the layer.
        kind: Class of the layer.
        units: Width: units, or filters.
        activation: Keras name of the activation, the layer's own or that of an activation layer behind it.
        inner: What acts before the reading is taken.
        outer: What acts after it, in a layer of its own.
        variance: sigma_w^2 = fan_in * Var(W), from the initial weights.
        weight_std: Standard deviation of the initial weights.
        fan_in: Inputs of one unit.
        drift: |mean(W)| * fan_in where the mean dominates the weights, else 0.
        output_rms: Root mean square of the output.
        output_gradient: L2 norm of the loss's gradient with respect to the output; NaN where not measured.
    """

    name: str
    kind: str
    units: int
    activation: str
    inner: Activation
    outer: Activation
    variance: float
    weight_std: float
    fan_in: int
    drift: float
    output_rms: float
    output_gradient: float


@dataclass(frozen=True)
class Link:
    """The growth from one stage to the next, as natural logarithms, measured and predicted."""

    forward: float
    forward_predicted: float
    backward: float
    backward_predicted: float


def stretches(trace: Trace) -> list[list[Stage]]:
    """Return the stretches of plain chain, each a list of at least two stages in the order of the layers."""
    output_rms, output_gradient = first_sample(trace, "output_rms"), first_sample(trace, "output_gradient_norm")
    found: list[list[Stage]] = [[]]
    for index, layer in enumerate(layer_descriptions(trace)):
        kind = layer.kind
        if kind in WEIGHTED_KINDS:
            stage = _stage(trace, index, layer, float(output_rms[index]), float(output_gradient[index]))
            if stage is None:
                found.append([])
            else:
                found[-1].append(stage)
        elif kind in ACTIVATION_KINDS:
            activated = _activated(found[-1], layer)
            if activated is None:
                found.append([])
            else:
                found[-1][-1:] = [activated]
        elif kind not in KINDS_THAT_PASS:
            found.append([])
    return [stretch for stretch in found if len(stretch) > 1]


def links(stretch: Sequence[Stage]) -> list[Link]:
    """Return the links of a stretch, one fewer than it has stages."""
    return [_link(before, after) for before, after in pairwise(stretch)]


def growth_log_std(stretch: Sequence[Stage]) -> float:
    """Return the standard deviation of ln(growth) due to finite width; 0 where no weight is random."""
    return finite_width_log_std([stage.units for stage in stretch if not stage.drift]) / 2.0


def _stage(trace: Trace, index: int, layer: LayerDescription, rms: float, gradient: float) -> Stage | None:
    fan_in, units, std, name = layer.fan_in, layer.units, layer.weight_std, layer.activation or "linear"
    if fan_in is None or units is None or std is None or name not in ACTIVATIONS:
        return None
    if min(fan_in, units) < 1 or std < 0 or not (math.isfinite(rms) and rms > 0):
        return None
    return Stage(
        name=trace.layers[index],
        kind=layer.kind,
        units=units,
        activation=name,
        inner=ACTIVATIONS[name],
        outer=ACTIVATIONS["linear"],
        variance=fan_in * std**2,
        weight_std=std,
        fan_in=fan_in,
        drift=_drift(fan_in, std, _mean_square(trace, index, layer, fan_in * units, std)),
        output_rms=rms,
        output_gradient=gradient if math.isfinite(gradient) and gradient > 0 else math.nan,
    )


def _mean_square(trace: Trace, index: int, layer: LayerDescription, entries: int, std: float) -> float:
    """Return the square of the mean of the weights; for an older record, from a norm that includes the biases."""
    if layer.weight_mean is not None:
        return layer.weight_mean**2
    norm = float(first_sample(trace, "weight_norm")[index])
    return norm**2 / entries - std**2


def _drift(fan_in: float, std: float, mean_square: float) -> float:
    """Return |mean| * fan_in if the mean dominates the weights, which then add up their inputs; else 0."""
    if not math.isfinite(mean_square) or mean_square * fan_in <= (MEAN_OVER_SPREAD * std) ** 2:
        return 0.0
    return math.sqrt(mean_square) * fan_in


def _activated(stretch: list[Stage], layer: LayerDescription) -> Stage | None:
    """Return the last stage with an activation layer behind it; None where the theory does not apply."""
    name = {"PReLU": "relu"}.get(layer.kind, layer.activation or layer.kind.lower())
    name = {"leakyrelu": "leaky_relu"}.get(name, name)
    if not stretch or name not in ACTIVATIONS:
        return None
    last = stretch[-1]
    if name == "linear":
        return last
    if last.inner.name != "linear" or last.outer.name != "linear":
        return None  # two activations in a row: the second one's inputs are no longer Gaussian
    outer = _LEAKY_RELU_LAYER if layer.kind == "LeakyReLU" else ACTIVATIONS[name]
    return replace(last, outer=outer, activation=name)


def _link(before: Stage, after: Stage) -> Link:
    sent = second_moment(before.outer, before.output_rms**2)  # mean square of what enters the next weights
    variance = after.variance * sent
    if after.drift:
        forward = backward = math.log(after.drift)
    else:
        arrived = second_moment(after.inner, variance)
        forward = 0.5 * _log(arrived / before.output_rms**2)
        slopes = derivative_moment(after.inner, variance) * derivative_moment(before.outer, before.output_rms**2)
        backward = 0.5 * _log(after.variance * slopes)
    return Link(
        forward=math.log(after.output_rms / before.output_rms),
        forward_predicted=forward,
        backward=float(np.log(before.output_gradient / after.output_gradient)),
        backward_predicted=backward,
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
