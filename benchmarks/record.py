"""What a benchmark found: figures with their spread, the versions they were measured with, as JSON and as a table.

A figure is a ratio, a share, a count or a number without unit: nothing that depends on the speed of a machine alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("GRADRECIPES_RESULTS", ROOT / "benchmarks" / "results"))
PLOTS = Path(os.environ.get("GRADRECIPES_PLOTS", ROOT / "docs" / "evidence"))
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "keras-tuner", "gradrecipes")


@dataclass(frozen=True)
class Figure:
    """One measured number beside the one that was expected.

    Args:
        claim: What is measured, in words that stand alone.
        measured: The number; None where none came out (every run diverged).
        low, high: Its 95% interval, or the number less and more its spread.
        expected: The number of the source or the theory, or a range `(low, high)` of it; None where there is none.
        n: Independent runs behind it.
        better: `"lower"` or `"higher"`: the other direction is a regression, and what is expected is a target that
            the number has to reach. None: any change is a regression, and what is expected has to lie in the interval.
    """

    claim: str
    measured: float | None
    low: float | None = None
    high: float | None = None
    expected: float | tuple[float, float] | None = None
    n: int = 1
    better: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval, a point where there is none, None without a number."""
        if self.measured is None:
            return None
        return (self.measured if self.low is None else self.low, self.measured if self.high is None else self.high)

    @property
    def expected_range(self) -> tuple[float, float] | None:
        """The range that was expected; a single number counts as rounded to the digits it is given with."""
        if self.expected is None:
            return None
        if not isinstance(self.expected, (int, float)):
            return (self.expected[0], self.expected[1])
        return (self.expected - _rounding(self.expected), self.expected + _rounding(self.expected))

    @property
    def reproduced(self) -> bool | None:
        """Whether the interval meets the range that was expected, for a target the number itself; None without one."""
        if self.expected_range is None:
            return None
        if self.interval is None:
            return False
        low, high = self.interval if self.better is None else (self.measured, self.measured)
        return bool(low <= self.expected_range[1] and high >= self.expected_range[0])

    def regressed(self, recorded: Figure) -> bool:
        """Whether this figure is worse than a recorded one by more than the spread of both.

        A figure without direction that still comes out as expected did not regress: its last digits may be those of
        another machine.
        """
        if self.better is None and self.reproduced:
            return False
        if self.interval is None or recorded.interval is None:
            return self.interval != recorded.interval
        above, below = self.interval[0] > recorded.interval[1], self.interval[1] < recorded.interval[0]
        return above if self.better == "lower" else below if self.better == "higher" else above or below


@dataclass
class Record:
    """All figures of one benchmark.

    Args:
        name: Of the benchmark, and of its file.
        title: One line for people.
        command: What measures it again.
        figures: What was measured.
        source: Where the expected figures come from.
        setting: All that one needs to do it by hand.
        findings: Sentences on what the figures show, and on what did not come out as expected.
        plot: Name of the picture in docs/evidence.
        about: Versions.
    """

    name: str
    title: str
    command: str
    figures: list[Figure]
    source: str = ""
    setting: str = ""
    findings: list[str] = field(default_factory=list)
    plot: str | None = None
    about: dict[str, str] = field(default_factory=lambda: versions())

    def write(self, folder: Path | None = None) -> Path:
        """Write the JSON file, and return its path."""
        folder = RESULTS if folder is None else folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        figures = [asdict(figure) | {"reproduced": figure.reproduced} for figure in self.figures]
        content = asdict(self) | {"figures": figures}
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False, default=float)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def show(self) -> None:
        """Print the table."""
        table = Table("", "expected", "measured", "n", "reproduced", title=self.title)
        for figure in self.figures:
            mark = {True: "yes", False: "NO", None: "-"}[figure.reproduced]
            table.add_row(figure.claim, expected_words(figure), measured_words(figure), str(figure.n), mark)
        console = Console(width=150)
        console.print(table)
        for finding in self.findings:
            console.print(finding)


def load(path: Path) -> Record:
    """Read what `Record.write` wrote."""
    read = json.loads(path.read_text(encoding="utf-8"))
    figures = [
        Figure(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in row.items()
                if key != "reproduced"
            }
        )
        for row in read.pop("figures")
    ]
    return Record(figures=figures, **read)


def versions() -> dict[str, str]:
    """Return the versions that a figure may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            from gradrecipes import __version__

            found[package] = __version__ if package == "gradrecipes" else "-"
    return found


def number_words(value: float | None) -> str:
    """Return a number to three significant digits."""
    if value is None:
        return "no number"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 and (abs(value) >= 1e-3 or value == 0) else f"{value:.2e}"


def expected_words(figure: Figure) -> str:
    """Return what was expected, in words."""
    if figure.expected is None:
        return "-"
    if isinstance(figure.expected, (int, float)):
        return number_words(figure.expected)
    low, high = figure.expected
    if math.isinf(high) or high >= 1e30:
        return f"at least {number_words(low)}"
    return " to ".join(dict.fromkeys([number_words(low), number_words(high)]))


def measured_words(figure: Figure) -> str:
    """Return what was measured with its interval, in words."""
    if figure.measured is None:
        return "no number: diverged"
    if figure.low is None or figure.high is None or (figure.low == figure.measured == figure.high):
        return number_words(figure.measured)
    return f"{number_words(figure.measured)} ({number_words(figure.low)} to {number_words(figure.high)})"


def mean_figure(claim: str, values: Any, *, resolution: float = 0.0, **more: Any) -> Figure:
    """Return the mean of independent values with Student's interval; runs that diverged (NaN) are not in it.

    The interval reaches at least `resolution` to both sides: the smallest difference that a value can have, such as one
    sample of a test set.
    """
    import numpy as np
    from scipy.stats import t

    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Figure(claim, None, n=0, **more)
    middle = float(values.mean())
    reach = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    reach = max(reach, resolution)
    return Figure(claim, middle, middle - reach, middle + reach, n=len(values), **more)


def share_figure(claim: str, events: int, count: int, **more: Any) -> Figure:
    """Return a share of runs with Wilson's interval."""
    from gradrecipes.core.analysis.intervals import wilson_interval

    interval = wilson_interval(events, count)
    if isinstance(more.get("expected"), (int, float)):  # a share is not a rounded number
        more["expected"] = (more["expected"], more["expected"])
    return Figure(claim, events / count, interval.low, interval.high, n=count, **more)


def save_plot(figure: Any, name: str) -> str:
    """Write a matplotlib figure as a small PNG into docs/evidence, and return its name."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(PLOTS / f"{name}.png", dpi=80, metadata={"Software": None})
    return f"{name}.png"


def _rounding(value: float) -> float:
    """Return half a unit of the last digit that `value` is written with."""
    mantissa, _, exponent = repr(float(value)).partition("e")
    decimals = len(mantissa.partition(".")[2].rstrip("0"))
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)
