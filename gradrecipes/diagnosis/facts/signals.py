"""What every rule asks of the signal probe: layers that hold weights, their growth, and how large the weights are."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LayerSignal, SignalReading, WeightScale

OUTPUT_ACTIVATIONS = {"softmax", "log_softmax"}
NORMALIZATIONS = {
    "BatchNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "UnitNormalization",
    "SpectralNormalization",
}
MERGES = {"Add", "Concatenate", "Average", "Multiply", "Maximum"}
WEIGHTED = {"Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D"}
RECURRENT = {"SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D"}
MIN_ENTRIES = 8  # of a kernel; the root mean square of so many normal numbers is below a fourth of theirs once in 1e4


def layers(trace: Trace, when: str = "before") -> list[LayerSignal]:
    """Return the readings of every layer, before the trial or after it; an empty list where there are none."""
    read = trace.probes.signal if when == "before" else trace.probes.signal_after
    return list((read or SignalReading()).layers)


def weights(trace: Trace) -> list[WeightScale]:
    """Return what is known of every weight before the trial."""
    return list((trace.probes.signal or SignalReading()).weights)


def hidden(trace: Trace, when: str = "before") -> list[LayerSignal]:
    """Return the readings of all layers but the last that has an activation or weights."""
    read = layers(trace, when)
    last = max((place for place, layer in enumerate(read) if layer.kind in WEIGHTED), default=-1)
    return [layer for place, layer in enumerate(read) if place < last and layer.activation not in OUTPUT_ACTIVATIONS]


def kernels(trace: Trace) -> Iterator[tuple[WeightScale, float, float]]:
    """Yield (weight, how many times larger than the largest usual, how many times smaller than the smallest)."""
    for weight in weights(trace):
        entries = math.prod(weight.shape)
        if entries < MIN_ENTRIES:
            continue  # the size of a few random numbers says nothing
        if weight.role in ("kernel", "matrix") and weight.most and weight.least is not None:
            rms = weight.rms
            yield weight, rms / weight.most, weight.least / rms if rms > 0 else math.inf


def weighted(trace: Trace, when: str = "before") -> list[LayerSignal]:
    """Return the readings of the layers that hold kernels, in the order of their calls."""
    return [layer for layer in layers(trace, when) if layer.kind in WEIGHTED]


def span(read: list[LayerSignal], reading: str) -> tuple[float, float] | None:
    """Return the first and the last positive value of a reading, or None where there are not two."""
    measured = [getattr(layer, reading) for layer in read]
    values = [value for value in measured if value and 0 < value < math.inf]
    return (float(values[0]), float(values[-1])) if len(values) > 1 else None


def cut_off(trace: Trace) -> bool:
    """Say whether no gradient at all reaches the first layer, before the trial as after it: its units are all dead."""
    for when in ("before", "after"):
        read = weighted(trace, when)
        if len(read) < 2 or read[0].output_gradient_norm != 0.0:
            return False
        if not any(layer.dead_share == 1.0 for layer in hidden(trace, when)):
            return False
    return True


def count(trace: Trace, kinds: set[str]) -> int:
    """Return how many layers of these kinds the signal passed."""
    return sum(layer.kind in kinds for layer in layers(trace))
