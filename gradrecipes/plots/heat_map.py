"""Layers x steps: where in the network, and when in the training, the gradients grew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradrecipes.core.trace import SAMPLE_READINGS, Trace
from gradrecipes.plots.canvas import (
    GREY,
    NONFINITE_COLOUR,
    ZERO_COLOUR,
    Picture,
    annotate_empty,
    groups,
    height_for,
    label_layers,
    new_figure,
)

COLUMNS_AT_MOST = 480  # columns drawn; about two device pixels each in the figure that `plot` makes
LOWEST_SHARE = 0.5  # percent of the values that may fall below the scale, so that a few tiny ones do not flatten it
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


class HeatMap(Picture):
    """Show at a glance which layers' gradients grew, and from which step on.

    One row a layer, one column a step, the colour is log10 of the value. Values that are not finite are
    red, zeros are white, and steps that the guard skipped carry a mark on top. Of a long training each
    column shows the largest value among its steps, and is red when any of them was not finite. When
    nothing was measured, the plot is empty and says so.

    Args:
        values: float64 `[layers, steps]`, not negative; NaN or infinity where the value was not finite.
        steps: int64 `[steps]`, the training step of each column.
        layers: Name of each row, first layer first.
        skipped: bool `[steps]`, steps that the guard left out; None for none.
        reading: What the values are, a key of `gradrecipes.plots.heat_map.LAYER_READINGS`.

    Attributes:
        ax_, figure_: The matplotlib axes and figure, after `plot`.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> trace = Trace(layers=["first", "second"])
        >>> trace.append(step=0, loss=2.3, gradient_norm=5.0, layer_gradient_norm=[3.0, 4.0])
        >>> HeatMap.from_trace(trace).values.shape
        (2, 1)
    """

    def __init__(self, values: Any, *, steps: Any, layers: Any, skipped: Any = None, reading="layer_gradient_norm"):
        self.values = np.asarray(values, np.float64)
        self.steps = np.asarray(steps, np.int64)
        self.layers = tuple(layers)
        self.skipped = np.zeros(len(self.steps), bool) if skipped is None else np.asarray(skipped, bool)
        self.reading = reading
        if reading not in LAYER_READINGS:
            raise ValueError(f"Unknown reading {reading!r}. Readings by layer are: {', '.join(LAYER_READINGS)}.")
        expected = (len(self.layers), len(self.steps))
        if self.values.shape != expected or self.skipped.shape != expected[1:]:
            raise ValueError(
                f"`values` must have the shape [layers, steps] = {expected} and `skipped` {expected[1:]}. "
                f"Received: {self.values.shape} and {self.skipped.shape}. A column of a Trace is transposed first."
            )

    @classmethod
    def from_trace(cls, trace: Trace, reading: str = "layer_gradient_norm") -> HeatMap:
        """Take one reading out of a trace; layers and steps at which it was not measured are left out.

        Raises:
            ValueError: An unknown reading.
        """
        part = layer_reading(trace, reading)
        return cls(part.values, steps=part.steps, layers=part.layers, skipped=part.skipped, reading=reading)

    def plot(self, ax: Any = None) -> HeatMap:
        """Draw on the given matplotlib axes, or on a new figure, and return self."""
        if ax is None:
            ax = new_figure(10.0, height_for(len(self.layers))).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        title, unit = LAYER_READINGS[self.reading]
        ax.set_title(f"{title} by layer and step", loc="left", fontweight="bold", pad=34 if self._needs_legend else 8)
        if not self.values.size:
            annotate_empty(ax, f"nothing to draw: no layer has a value of {self.reading}")
            return self
        self._draw_cells(ax, f"{unit} (log scale)")
        self._draw_steps(ax)
        label_layers(ax, self.layers, offset=0.5)
        ax.set_ylim(len(self.layers), 0)
        return self

    @property
    def _needs_legend(self) -> bool:
        return bool(self.skipped.any() or not (np.isfinite(self.values) & (self.values > 0)).all())

    def _draw_cells(self, ax: Any, unit: str) -> None:
        from matplotlib.colors import ListedColormap, LogNorm
        from matplotlib.patches import Patch

        starts = groups(len(self.steps), COLUMNS_AT_MOST)
        finite = np.isfinite(self.values)
        nonfinite = np.logical_or.reduceat(~finite, starts, axis=1)
        peak = np.maximum.reduceat(np.where(finite, self.values, 0.0), starts, axis=1)
        zero = ~nonfinite & (peak <= 0)
        regular = ~nonfinite & ~zero
        edges = np.append(starts, len(self.steps))
        rows = np.arange(len(self.layers) + 1)
        if regular.any():
            low, high = np.percentile(peak[regular], [LOWEST_SHARE, 100], method="lower")
            clipped = low > peak[regular].min()
            if low * 2 > high:  # a single value, or nearly: give it a decade to stand in
                low, high = low / 10**0.5, high * 10**0.5
            cells = np.ma.masked_where(~regular, peak)
            mesh = ax.pcolormesh(edges, rows, cells, cmap="cividis", norm=LogNorm(low, high), rasterized=True)
            ax.figure.colorbar(
                mesh, ax=ax, label=unit, extend="min" if clipped else "neither", extendfrac=0.03,
                fraction=0.05, pad=0.015, aspect=4.5 * ax.figure.get_figheight(),
            )  # fmt: skip
        kinds = ((nonfinite, NONFINITE_COLOUR, "not finite (NaN or infinite)"), (zero, ZERO_COLOUR, "exactly zero"))
        handles = []
        for mask, colour, label in kinds:
            if mask.any():
                ax.pcolormesh(
                    edges, rows, np.ma.masked_where(~mask, mask), cmap=ListedColormap([colour]), rasterized=True
                )
                handles.append(Patch(facecolor=colour, edgecolor=GREY, label=label))
        handles += self._draw_skipped(ax)
        if handles:
            ax.legend(
                handles=handles,
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                ncols=3,
                frameon=False,
                borderaxespad=0.7,
                borderpad=0.0,
                handlelength=1.2,
                columnspacing=1.2,
            )

    def _draw_skipped(self, ax: Any) -> list[Any]:
        if not self.skipped.any():
            return []
        starts = groups(len(self.steps), COLUMNS_AT_MOST // 4)  # a mark is about as wide as four columns
        middles = (starts + np.append(starts[1:], len(self.steps))) / 2
        marked = middles[np.logical_or.reduceat(self.skipped, starts)]
        colour = ax.xaxis.label.get_color()
        return ax.plot(
            marked,
            np.full(len(marked), 1.0),
            marker=[(-0.5, 2.0), (0.5, 2.0), (0.0, 0.6)],
            linestyle="",
            color=colour,
            markersize=13,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            label="skipped step",
        )

    def _draw_steps(self, ax: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        count = len(self.steps)
        places = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]).tick_values(0, max(count - 1, 1))
        places = [int(place) for place in places if 0 <= place < count]
        ax.set_xticks([place + 0.5 for place in places], [str(self.steps[place]) for place in places])
        ax.set_xlim(0, count)
        even = count < 3 or len(set(np.diff(self.steps).tolist())) == 1
        ax.set_xlabel("training step" if even else "training step (one column for each recorded step)")


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
