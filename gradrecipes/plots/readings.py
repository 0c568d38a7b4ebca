"""One reading of a Trace as a matrix of layers and steps, with what was never measured left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradrecipes.core.trace import SAMPLE_READINGS, Trace

# reading -> (title, unit)
LAYER_READINGS = {
    "layer_gradient_norm": ("Gradient norm", "L2 norm, before clipping"),
    "gradient_max": ("Largest gradient entry", "largest |g| of the layer"),
    "nonfinite_share": ("Share of non-finite gradients", "share of the entries, 0 to 1"),
    "zero_share": ("Share of zero gradients", "share of the entries, 0 to 1"),
    "weight_norm": ("Weight norm", "L2 norm, before the update"),
    "update_norm": ("Update norm", "L2 norm of the update"),
    "update_ratio": ("Update ratio", "update norm / weight norm"),
    "output_rms": ("Output size", "root mean square of the output"),
    "output_gradient_norm": ("Gradient norm of the output", "L2 norm over the batch"),
}


@dataclass(frozen=True)
class LayerReading:
    """A reading by layer and step.

    Args:
        values: float64 `[layers, steps]`; NaN and infinity mean that the value was not finite.
        steps: int64 `[steps]`, the training steps of the columns.
        skipped: bool `[steps]`, whether the guard left the step out.
        layers: Names of the rows.
    """

    values: np.ndarray
    steps: np.ndarray
    skipped: np.ndarray
    layers: tuple[str, ...]


def layer_reading(trace: Trace, reading: str) -> LayerReading:
    """Return one reading of a trace by layer and step, without what was never measured.

    NaN in a Trace means "not measured", and a gradient can be NaN too. A column that is NaN throughout
    counts as measured when the loss or the gradient norm of its step was not finite or the step was
    skipped. A layer without a single number is left out; when no layer has one, those that have
    weights are kept, for then everything went wrong from the first step.

    Raises:
        ValueError: An unknown reading.
    """
    if reading not in LAYER_READINGS:
        raise ValueError(
            f"Unknown reading {reading!r}. Readings by layer are: {', '.join(LAYER_READINGS)}. "
            "For the loss and the global gradient norm use TrainingCurves."
        )
    table = trace.samples if reading in SAMPLE_READINGS else trace.steps
    steps = table["step"]
    values = table[reading].T.astype(np.float64)
    known = trace.steps["step"]
    sick = known[~np.isfinite(trace.loss) | ~np.isfinite(trace.gradient_norm) | trace.skipped]
    kept_steps = ~np.isnan(values).all(axis=0) | np.isin(steps, sick)
    values, steps = values[:, kept_steps], steps[kept_steps]
    kept_layers = ~np.isnan(values).all(axis=1)
    if not kept_layers.any() and len(steps):
        kept_layers = _has_weights(trace)
    return LayerReading(
        values=values[kept_layers],
        steps=steps,
        skipped=np.isin(steps, known[trace.skipped]),
        layers=tuple(name for name, kept in zip(trace.layers, kept_layers, strict=True) if kept),
    )


def _has_weights(trace: Trace) -> np.ndarray:
    described = trace.description.layers
    if len(described) != len(trace.layers):
        return np.zeros(len(trace.layers), bool)
    return np.array([bool(layer.parameters) for layer in described], bool)
