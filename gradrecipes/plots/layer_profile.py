"""How large the signal is at each layer, on the way forward and on the way back."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.plots.canvas import (
    BLUE,
    NONFINITE_COLOUR,
    VERMILLION,
    Picture,
    annotate_empty,
    height_for,
    label_layers,
    plain_ticks,
    two_axes,
)

BAND = 2.0  # factor about the prediction that is drawn when none is given; one binary order each way


class LayerProfile(Picture):
    """Show whether the signal grows or fades from layer to layer, forward and backward, at one step.

    In a healthy network both lines are nearly vertical: every layer passes on what it gets. A line that
    leans steadily is a growth factor per layer, and the gradient explodes or vanishes with the depth.

    Args:
        output_rms: float `[layers]`, root mean square of each layer's output; NaN where not measured.
        output_gradient_norm: float `[layers]`, L2 norm of d loss / d output over the batch.
        layers: Names, first layer first.
        step: The training step that the values are of; None when it is not known.
        predicted: float `[layers]`, what theory expects of `output_gradient_norm`, in the same unit.
        band: The prediction holds within this factor, up and down; at least 1; a number or float `[layers]`.

    Attributes:
        axes_, figure_: The two matplotlib axes (forward, backward) and the figure, after `plot`.

    Example:
        >>> profile = LayerProfile([1.0, 1.1], [0.2, 0.1], layers=["first", "second"], predicted=[0.1, 0.1])
        >>> profile.layers
        ('first', 'second')
    """

    def __init__(
        self, output_rms: Any, output_gradient_norm: Any, *, layers: Any, step=None, predicted=None, band: Any = BAND
    ):
        self.layers = tuple(layers)
        self.output_rms = np.asarray(output_rms, np.float64)
        self.output_gradient_norm = np.asarray(output_gradient_norm, np.float64)
        self.step = step
        self.predicted = None if predicted is None else np.asarray(predicted, np.float64)
        self.band = np.asarray(band, np.float64)
        depth = (len(self.layers),)
        for name in ("output_rms", "output_gradient_norm", "predicted"):
            values = getattr(self, name)
            if values is not None and values.shape != depth:
                raise ValueError(
                    f"`{name}` must have one value for each of the {depth[0]} layers. "
                    f"Received the shape {values.shape}."
                )
        if self.band.shape not in ((), depth) or not (self.band >= 1).all():
            raise ValueError(
                f"`band` must be a factor of at least 1, one for all layers or one for each. Received: band={band!r}. "
                "For a prediction that is off by 30 percent at most, pass 1.3."
            )

    @classmethod
    def from_trace(cls, trace: Trace, step: int | None = None, *, predicted: Any = None, band: Any = BAND):
        """Take the profile of one sampled step out of a trace; layers without either reading are left out.

        Args:
            trace: The record.
            step: A step that was sampled; None for the first one, which shows the state before training.
            predicted: float `[len(trace.layers)]`, what theory expects of `output_gradient_norm`.
            band: The prediction holds within this factor.

        Raises:
            ValueError: The step was not sampled, or `predicted` does not fit the layers.
        """
        sampled = trace.samples["step"]
        depth = len(trace.layers)
        if predicted is not None and np.shape(predicted) != (depth,):
            raise ValueError(
                f"`predicted` must have one value for each of the {depth} layers of the trace. "
                f"Received the shape {np.shape(predicted)}."
            )
        if step is None and not len(sampled):
            return cls([], [], layers=(), band=band if np.ndim(band) == 0 else BAND)
        row = 0 if step is None else _row_of(sampled, step)
        forward = trace.samples["output_rms"][row].astype(np.float64)
        backward = trace.samples["output_gradient_norm"][row].astype(np.float64)
        kept = np.array([not (np.isnan(f) and np.isnan(b)) for f, b in zip(forward, backward, strict=True)], bool)
        return cls(
            forward[kept],
            backward[kept],
            layers=[name for name, keep in zip(trace.layers, kept, strict=True) if keep],
            step=int(sampled[row]),
            predicted=None if predicted is None else np.asarray(predicted, np.float64)[kept],
            band=np.asarray(band)[kept] if np.shape(band) == (depth,) else band,
        )

    def plot(self, ax: Any = None) -> LayerProfile:
        """Draw and return self.

        Args:
            ax: A pair of matplotlib axes (forward, backward); or one, which is then split in two;
                or None for a new figure.
        """
        self.axes_ = two_axes(ax, (10.0, height_for(len(self.layers))), [(0, 0, 0.48, 1), (0.52, 0, 0.48, 1)], ncols=2)
        self.figure_ = self.axes_[0].figure
        forward, backward = self.axes_
        when = "" if self.step is None else f", step {self.step}"
        forward.set_title(f"Forward: layer outputs{when}", loc="left", fontweight="bold")
        backward.set_title(f"Backward: their gradients{when}", loc="left", fontweight="bold")
        forward.set_xlabel("root mean square of the output (log scale)")
        backward.set_xlabel("L2 norm of d loss / d output (log scale)")
        if self.predicted is not None:
            self._draw_prediction(backward)
        self._draw_line(forward, self.output_rms, "output_rms")
        self._draw_line(backward, self.output_gradient_norm, "output_gradient_norm")
        if self.layers:
            label_layers(forward, self.layers)
            for axes in self.axes_:
                axes.set_ylim(len(self.layers) - 0.5, -0.5)
            backward.set_yticks(forward.get_yticks())
            backward.tick_params(labelleft=False)
        return self

    def _draw_line(self, axes: Any, values: np.ndarray, reading: str) -> None:
        positive = np.isfinite(values) & (values > 0)
        rows = np.arange(len(values))
        if not positive.any():
            annotate_empty(axes, f"no finite value of {reading}")
        else:
            axes.set_xscale("log")
            axes.grid(alpha=0.25)
            axes.plot(
                np.where(positive, values, np.nan), rows, "-o", color=BLUE, linewidth=1.3, markersize=3.5,
                label="measured",
            )  # fmt: skip
            span = np.log10(values[positive].max() / values[positive].min())
            if span < 1:  # less than a decade: show one, so that noise does not look like growth
                middle = np.sqrt(values[positive].max() * values[positive].min())
                axes.set_xlim(min(middle / 10**0.6, axes.get_xlim()[0]), max(middle * 10**0.6, axes.get_xlim()[1]))
            plain_ticks(axes.xaxis)
        measured = ~np.isnan(values).all()
        marks = ((np.isinf(values) | (np.isnan(values) & measured), "x", NONFINITE_COLOUR, 0.975, "not finite"),)
        marks += ((values == 0, "<", VERMILLION, 0.025, "exactly zero"),)
        for mask, marker, colour, place, label in marks:
            if mask.any():
                axes.plot(
                    np.full(mask.sum(), place), rows[mask], marker, color=colour, label=label,
                    transform=axes.get_yaxis_transform(),
                )  # fmt: skip
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="best", fontsize=8.5)

    def _draw_prediction(self, axes: Any) -> None:
        rows = np.arange(len(self.layers))
        usable = np.where(np.isfinite(self.predicted) & (self.predicted > 0), self.predicted, np.nan)
        if np.isnan(usable).all():
            return
        axes.fill_betweenx(
            rows, usable / self.band, usable * self.band, color=VERMILLION, alpha=0.18, linewidth=0,
            label="predicted, within its error",
        )  # fmt: skip
        axes.plot(usable, rows, "--", color=VERMILLION, linewidth=1.2, label="predicted")


def _row_of(sampled: np.ndarray, step: int) -> int:
    rows = np.flatnonzero(sampled == step)
    if len(rows):
        return int(rows[0])
    if not len(sampled):
        raise ValueError(f"`step` must be a sampled step. Received: step={step}. This trace has no samples.")
    nearest = int(sampled[np.argmin(np.abs(sampled - step))])
    raise ValueError(
        f"`step` must be a sampled step. Received: step={step}. The nearest sampled one is {nearest}; "
        "leave `step` out for the first."
    )
