"""What most rules read from a Trace: the first sample, layers and kernels, finite steps, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradrecipes.core.trace import SKIPPED_GRADIENT, SKIPPED_LOSS, SKIPPED_OVERFLOW, Trace
from gradrecipes.core.trace.description import Description, LayerDescription
from gradrecipes.core.trace.probes import LayerSignal, SignalReading, WeightScale

OUT_OF_PROPORTION = 10.0  # ||g||/||W|| of a layer at the first step; healthy nets have .01 to 2
TOLERATED_BY_SCALER = 0.3  # share of steps that a loss scaler may skip while it searches for its scale
MIN_PARAMETERS = 16  # of a layer; the norm of fewer weights is random
SMALLEST_WEIGHT_RMS = 1e-3  # root mean square of a layer's weights below which (zero heads, ReZero) ratios are not read


def first_sample(trace: Trace, reading: str) -> np.ndarray:
    """Return a reading of the first sample, float64 `[layers]`; all NaN where there is no sample."""
    if not len(trace.samples):
        return np.full(len(trace.layers), np.nan)
    return np.asarray(trace.samples[reading][int(np.argmin(trace.samples["step"]))], dtype=np.float64)


def layer_descriptions(trace: Trace) -> list[LayerDescription]:
    """Return a description for each of `trace.layers`; the name alone where no more is known."""
    known = {layer.name: layer for layer in trace.description.layers}
    return [known.get(name) or LayerDescription(name) for name in trace.layers]


def number(value: Any) -> float | None:
    """Return a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def nonfinite_losses(trace: Trace) -> np.ndarray:
    """Return bool `[n]`: the steps whose loss is NaN or infinite; one that was not measured is not among them.

    NaN also means "not measured": where no loss of the record is a number while gradients are.
    """
    loss = trace.loss
    reported = trace.steps["outcome"] == SKIPPED_LOSS
    gradients = np.isfinite(trace.gradient_norm).any() or np.isfinite(trace.layer_gradient_norm).any()
    measured = not np.isnan(loss).all() or not gradients
    return reported | (~np.isfinite(loss) if measured else np.zeros(len(loss), bool))


def nonfinite_gradients(trace: Trace) -> np.ndarray:
    """Return bool `[n]`: the steps whose gradient had a NaN or infinite entry, or a norm beyond float32.

    Those that a loss scaler skips while it searches for its scale are not among them: it starts too large on purpose,
    and tries larger scales from time to time.
    """
    found, left_out = _nonfinite_gradients(trace), left_out_by_scaler(trace)
    searches = left_out.sum() <= TOLERATED_BY_SCALER * len(trace) and not _gave_up(trace)
    return found & ~left_out if searches else found


def left_out_by_scaler(trace: Trace) -> np.ndarray:
    """Return bool `[n]`: the steps whose loss is finite and whose gradient is not, in a run with a loss scaler."""
    if not trace.description.loss_scaler:
        return np.zeros(len(trace), bool)
    return _nonfinite_gradients(trace) & np.isfinite(trace.loss)


def _gave_up(trace: Trace) -> bool:
    """Say whether a trial ended because its scaler left out one step after the other."""
    return trace.probes.trial is not None and trace.probes.trial.broken is not None


def _nonfinite_gradients(trace: Trace) -> np.ndarray:
    norm, by_layer = trace.gradient_norm, trace.layer_gradient_norm
    found = np.isin(trace.steps["outcome"], (SKIPPED_GRADIENT, SKIPPED_OVERFLOW))
    found |= np.isinf(norm) | np.isinf(by_layer).any(axis=1)
    if np.isfinite(norm).any():  # else a NaN only says that norms were not recorded
        found |= np.isnan(norm)
    share = trace.samples["nonfinite_share"]
    bad_samples = trace.samples["step"][(np.nan_to_num(share, nan=0.0) > 0).any(axis=1)]
    return found | np.isin(trace.steps["step"], bad_samples)


def gradient_to_weight(trace: Trace) -> np.ndarray:
    """Return ||g||/||W|| of the first sample, float64 `[layers]`; NaN where either is missing or W is almost 0."""
    if not len(trace) or not len(trace.samples):
        return np.full(len(trace.layers), np.nan)
    rows = np.flatnonzero(trace.steps["step"] == trace.samples["step"].min())
    if not len(rows):
        return np.full(len(trace.layers), np.nan)
    gradients = np.asarray(trace.layer_gradient_norm[rows[0]], dtype=np.float64)
    weights = first_sample(trace, "weight_norm")
    usable = np.isfinite(gradients) & np.isfinite(weights) & (weights > smallest_weight_norms(trace))
    return np.where(usable, gradients / np.where(usable, weights, 1.0), np.nan)


def out_of_proportion(trace: Trace) -> bool:
    """Return whether the gradient of a layer is far larger than its weights at the first sample."""
    ratios = gradient_to_weight(trace)
    sizes = np.array([layer.parameters or math.inf for layer in layer_descriptions(trace)])
    usable = np.isfinite(ratios) & (sizes >= MIN_PARAMETERS)
    return bool(np.any(ratios[usable] >= OUT_OF_PROPORTION))


def smallest_weight_norms(trace: Trace) -> np.ndarray:
    """Return the norm, float64 `[layers]`, up to which the weights of a layer count as 0."""
    sizes = [max(1.0, number(layer.parameters) or 1.0) for layer in layer_descriptions(trace)]
    return SMALLEST_WEIGHT_RMS * np.sqrt(sizes)


def middle(values: np.ndarray) -> float:
    """Return the median of the finite values, NaN where there is none."""
    finite = np.asarray(values, dtype=np.float64)[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def place(trace: Trace, step: int) -> str:
    """Return "epoch 1, batch 4 (step 3)": epochs and batches from 1, as Keras counts them, and steps from 0."""
    where = trace.locate(step)
    return f"step {step}" if where is None else f"epoch {where[0] + 1}, batch {where[1] + 1} (step {step})"


def rounded(value: float | None) -> str:
    """Return a number as text: three significant digits, a power of ten when it is far from 1."""
    if value is None:
        return "unknown"
    if not math.isfinite(value):
        return str(float(value))
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


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
MIN_ENTRIES = 8  # of a kernel; the root mean square of 8 normal numbers is below a fourth of the true one once in 1e4
TOO_LARGE = 2.0  # times the largest usual standard deviation of a kernel: four times the variance


def layers(trace: Trace, when: str = "before") -> list[LayerSignal]:
    """Return the readings of every layer, before the trial or after it; an empty list where there are none."""
    read = trace.probes.signal if when == "before" else trace.probes.signal_after
    return list((read or SignalReading()).layers)


def weights(trace: Trace) -> list[WeightScale]:
    """Return the scale of every weight before the trial."""
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
            continue
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
    """Return whether the first layer gets no gradient, before the trial and after it, because all units are dead."""
    for when in ("before", "after"):
        read = weighted(trace, when)
        if len(read) < 2 or read[0].output_gradient_norm != 0.0:
            return False
        if not any(layer.dead_share == 1.0 for layer in hidden(trace, when)):
            return False
    return True


def count(trace: Trace, kinds: set[str]) -> int:
    """Return how many layers of these kinds the net has."""
    return sum(layer.kind in kinds for layer in layers(trace))


FIXED_SCALINGS = {"Normalization", "Rescaling"}  # with factors that were set before, for these data or for others
MIN_INPUT_RMS = 0.01  # root mean square below which all that the first layer makes of the inputs is its bias


def behind_scaling(description: Description, signal: SignalReading | None) -> float | None:
    """Return the size of what a scaling of fixed factors gives to the first weights; None for any other net.

    That is the root mean square, or the spread about the mean where next to nothing else is left of the samples: what a
    base scales that was scaled before lies close to the end of its range.
    """
    met, read = description.inputs, (signal or SignalReading()).layers
    place = next((place for place, layer in enumerate(read) if layer.kind in WEIGHTED | RECURRENT), None)
    within = [layer for layer in read[:place] if layer.kind in FIXED_SCALINGS]  # of a net in the net, too
    if place is None or len(met) != 1 or not (within or met[0].normalized in FIXED_SCALINGS):
        return None
    if within and within[-1].output_rms is not None and within[-1].output_mean is not None:
        spread = math.sqrt(max(0.0, within[-1].output_rms ** 2 - within[-1].output_mean ** 2))
        if 0 < spread < MIN_INPUT_RMS:
            return spread
    return read[place].input_rms
