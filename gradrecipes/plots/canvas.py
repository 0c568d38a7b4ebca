"""What every plot here shares: a figure outside pyplot's global state, colours, labels, thinning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

# Chosen against cividis under simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009):
# the nearest colour of the map is at least 20 CIELAB units away from each.
NONFINITE_COLOUR = "#e3001b"
ZERO_COLOUR = "#ffffff"
# Okabe and Ito (2008), "Color universal design": told apart by readers of every colour vision.
BLUE, ORANGE, VERMILLION, GREY = "#0072b2", "#e69f00", "#d55e00", "#7f7f7f"

LABELS_AT_MOST = 40  # layer names on one axis; more cannot be read at 0.2 inch each
POINTS_AT_MOST = 1200  # groups of steps in a line; each keeps its lowest and highest value
MARKS_AT_MOST = 240  # marks side by side along an axis before they merge
PLAIN_BELOW = 100.0  # largest over smallest end of a logarithmic axis below which its ticks are plain numbers
LABEL_LENGTH = 30  # characters of a layer name on an axis
# Marker, colour (None for that of the labels), size and height, as a share of that of the axes.
MARKS = {
    "clipped step": ("|", ORANGE, 6.0, 0.02),
    "not finite": ("x", NONFINITE_COLOUR, 6.0, 0.96),
    "skipped step": ("v", None, 4.5, 1.03),
}


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure (inches) that pyplot does not know of.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which is not installed. Install it with: pip install 'gradrecipes[report]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file; its ending (.png, .svg, .pdf) chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)


class Picture:
    """Give a class that draws itself, and then has a `figure_`, the way into a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file (.png, .svg or .pdf), drawing it first if need be."""
        if not hasattr(self, "figure_"):
            self.plot()
        save_figure(self.figure_, path)


def two_axes(ax: Any, size: tuple[float, float], places: list[tuple[float, ...]], **subplots: Any) -> tuple[Any, Any]:
    """Return the pair of axes that a picture is drawn on.

    Args:
        ax: A pair of matplotlib axes; or one, which is then split in two; or None for a new figure.
        size: Width and height of a new figure, inches.
        places: Left, bottom, width and height of each half of an axes that is split, in its own units.
        subplots: How a new figure is split, as in `Figure.subplots`.
    """
    if ax is None:
        first, second = new_figure(*size).subplots(**subplots)
    elif hasattr(ax, "inset_axes"):
        ax.set_axis_off()
        first, second = (ax.inset_axes(place) for place in places)
    else:
        first, second = ax
    return first, second


def short_name(name: str) -> str:
    """Return a layer name that fits beside an axis: long ones lose their middle, control characters are replaced."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= LABEL_LENGTH:
        return name
    half = (LABEL_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def label_layers(ax: Any, names: tuple[str, ...], *, offset: float = 0.0) -> None:
    """Write layer names along the y axis, first layer at the top; of very many layers every n-th is named.

    Args:
        ax: The axes; row `i` is expected at `i + offset`.
        names: Name of each row.
        offset: Where in its row a name stands.
    """
    stride = max(1, -(-len(names) // LABELS_AT_MOST))
    rows = range(0, len(names), stride)
    size = 9 if len(rows) <= 24 else 7.5
    ax.set_yticks(
        [row + offset for row in rows], [short_name(names[row]) for row in rows], fontsize=size, parse_math=False
    )
    every = f", one name in {stride}" if stride > 1 else ""
    ax.set_ylabel(f"layer (first at the top{every})")


def height_for(layers: int) -> float:
    """Return the height of a figure, in inches, in which so many layers can be read."""
    return 2.0 + 0.2 * min(max(layers, 4), LABELS_AT_MOST)


def groups(count: int, at_most: int) -> np.ndarray:
    """Return the first index of each of at most `at_most` runs that share out `count` items, int64 `[groups]`."""
    return np.unique(np.linspace(0, count, min(count, at_most), endpoint=False).astype(np.int64))


def envelope(values: np.ndarray, at_most: int = POINTS_AT_MOST) -> np.ndarray:
    """Return the indices of the lowest and highest finite value in each group, so that no spike is lost.

    Args:
        values: float `[n]`; values that are not finite are left out of the choice.
        at_most: Number of groups.

    Returns:
        int64 indices in ascending order, at most `2 * at_most`; all of them when there are no more than that.
    """
    count = len(values)
    if count <= 2 * at_most:
        return np.arange(count)
    starts = groups(count, at_most)
    chosen: set[int] = set()
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        finite = start + np.flatnonzero(np.isfinite(values[start:stop]))
        if len(finite):
            chosen |= {int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])}
        else:
            chosen.add(int(start))
    return np.array(sorted(chosen), dtype=np.int64)


def step_axis(axes: Any, steps: np.ndarray) -> None:
    """Let a horizontal axis of steps end a little beyond them, with whole numbers beside a grid."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.grid(alpha=0.25)
    if len(steps):
        margin = max(0.5, 0.01 * float(steps[-1] - steps[0]))
        axes.set_xlim(steps[0] - margin, steps[-1] + margin)


def mark_steps(axes: Any, steps: np.ndarray, label: str, where: np.ndarray) -> None:
    """Mark steps along an axis, as many as can be told apart.

    Args:
        axes: The matplotlib axes.
        steps: Numbers of the steps, `[n]`.
        label: What they are, one of `MARKS`.
        where: bool `[n]`, which are marked.
    """
    if not where.any():
        return
    starts = groups(len(where), MARKS_AT_MOST)
    ends = [*starts[1:], len(where)]
    marked = [a + int(np.argmax(where[a:b])) for a, b in zip(starts, ends, strict=True) if where[a:b].any()]
    marker, colour, size, height = MARKS[label]
    how = {"color": colour or axes.xaxis.label.get_color(), "markersize": size, "clip_on": False, "label": label}
    axes.plot(steps[marked], np.full(len(marked), height), marker, transform=axes.get_xaxis_transform(), **how)


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis of less than two decades by 1, 2 and 5: matplotlib's own labels touch each other there.

    Args:
        axis: The x or y axis of matplotlib axes, its limits set.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if low > 0 and high < PLAIN_BELOW * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def annotate_empty(ax: Any, message: str) -> None:
    """Say on empty axes why there is nothing to see."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, message, ha="center", va="center", color=GREY, wrap=True, transform=ax.transAxes)
