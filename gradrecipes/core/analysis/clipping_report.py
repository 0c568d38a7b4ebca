"""What clipping did in a run, and the bound that its gradient norms speak for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradrecipes.core.trace import APPLIED, Trace

PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)
BOUND_PERCENTILE = 90.0  # of the norms: cuts the largest tenth, leaves nine steps of ten as they are
HIGHEST_MULTIPLE = 10.0  # of the median; arXiv 1211.5063, section 3.2: half to ten times the average norm converges
FEWEST_STEPS = 20  # below, the largest tenth is one step or two
MOST_STEPS_CLIPPED = 0.5  # share; above it the bound, not the gradient, sets the length of the usual step
RISEN = 10.0  # ratio of the medians of last and first quarter, above which the norms of the end are a symptom
SIGNIFICANT_DIGITS = 2  # of a recommended bound: networks do not feel the third

PASCANU = (
    "Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, section 3.2: choose the bound from the norms observed over "
    "many updates; half to ten times their average still converges. A percentile of the run's own norms: "
    "Seetharaman et al. 2020 (AutoClip), arXiv 2007.14469"
)


@dataclass(frozen=True)
class ClippingReport:
    """Tell how often clipping acted, what it did to the norms, and what bound the run itself recommends.

    Norms are global L2 norms of the unscaled gradient, of the steps that were applied and whose norm is finite.

    Args:
        steps: All recorded steps.
        applied_steps: Steps that were applied and have a finite norm and a known factor: those counted below.
        clipped_steps: Applied steps whose gradient was made smaller.
        skipped_steps: Steps that a guard left out.
        nonfinite_steps: Steps whose norm was not finite.
        norms_before: Percentile to norm before clipping; empty where no step was applied.
        norms_after: The same after clipping.
        recommended_bound: A bound for `by_global_norm`, two significant digits, or None.
        reason: Why this bound, or why none, in words.
        source: Where the rule comes from.
    """

    steps: int
    applied_steps: int
    clipped_steps: int
    skipped_steps: int
    nonfinite_steps: int
    norms_before: dict[int, float]
    norms_after: dict[int, float]
    recommended_bound: float | None
    reason: str
    source: str = PASCANU

    @property
    def clipped_share(self) -> float:
        """Share of the applied steps that were clipped, 0 to 1; 0 where none was applied."""
        return self.clipped_steps / self.applied_steps if self.applied_steps else 0.0

    @property
    def verdict(self) -> str:
        """One sentence on how the clipping worked."""
        if not self.applied_steps:
            return "No applied step with a finite norm was recorded, so there is nothing to say of clipping."
        if not self.clipped_steps:
            return "Nothing was clipped."
        if self.clipped_share > MOST_STEPS_CLIPPED:
            return (
                "Most steps were clipped: what bounds them, more than the gradient, sets the length of the usual step, "
                "and works as a part of the learning rate."
            )
        return "Clipping acted on the larger steps and left the usual ones alone."

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values; percentiles are named "p50"."""
        return {
            "steps": self.steps,
            "applied_steps": self.applied_steps,
            "clipped_steps": self.clipped_steps,
            "clipped_share": self.clipped_share,
            "skipped_steps": self.skipped_steps,
            "nonfinite_steps": self.nonfinite_steps,
            "norms_before": {f"p{percentile}": norm for percentile, norm in self.norms_before.items()},
            "norms_after": {f"p{percentile}": norm for percentile, norm in self.norms_after.items()},
            "recommended_bound": self.recommended_bound,
            "reason": self.reason,
            "source": self.source,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        lines = [
            f"Clipped: {self.clipped_steps} of {self.applied_steps} applied steps ({self.clipped_share:.1%}); "
            f"{self.skipped_steps} skipped, {self.nonfinite_steps} with a norm that is not finite.",
            self.verdict,
        ]
        if self.norms_before:
            heads = {0: "smallest", 50: "median", 100: "largest"}
            lines.append("Norm    " + "".join(f"{heads.get(p, f'{p}%'):>11}" for p in self.norms_before))
            lines.append("before  " + "".join(f"{norm:>11.3g}" for norm in self.norms_before.values()))
            lines.append("after   " + "".join(f"{norm:>11.3g}" for norm in self.norms_after.values()))
        bound = "none" if self.recommended_bound is None else f"{self.recommended_bound:g}"
        return "\n".join([*lines, f"Recommended bound: {bound}. {self.reason}"])


def clipping_report(trace: Trace) -> ClippingReport:
    """Read from a trace what clipping did, and recommend a bound for the global norm.

    The bound is the 90th percentile of the norms before clipping, at most ten times their median, so that a run
    full of spikes does not recommend its spikes. Where the norms rose tenfold or more from the first quarter of
    the run to the last, only the first quarter is believed: the rest is what clipping is to prevent.

    Args:
        trace: A recorded run, clipped or not.

    Example:
        >>> trace = Trace()
        >>> trace.extend(step=range(100), gradient_norm=[1.0] * 95 + [1e6] * 5, clip_factor=[1.0] * 100)
        >>> report = clipping_report(trace)
        >>> report.clipped_steps, report.recommended_bound
        (0, 1.0)
    """
    before = trace.gradient_norm.astype(np.float64)
    factor = trace.steps["clip_factor"].astype(np.float64)
    factor = np.where(np.isnan(factor), 1.0, factor)  # a run in which nothing clips may not have recorded one
    applied = (trace.steps["outcome"] == APPLIED) & np.isfinite(before)
    norms, kept = before[applied], np.clip(factor[applied], 0.0, 1.0)
    bound, reason = recommend_bound(norms)
    return ClippingReport(
        steps=len(trace),
        applied_steps=len(norms),
        clipped_steps=int((kept < 1.0).sum()),
        skipped_steps=int(trace.skipped.sum()),
        nonfinite_steps=int((~np.isfinite(before)).sum()),
        norms_before=_percentiles(norms),
        norms_after=_percentiles(norms * kept),
        recommended_bound=bound,
        reason=reason,
    )


def recommend_bound(norms: np.ndarray) -> tuple[float | None, str]:
    """Return a bound for the global norm and the reason for it in words, or None and what is missing.

    Args:
        norms: float `[n]`, norms of applied steps in their order, before clipping. Values that are not finite, and
            zeros, tell nothing of how long a step may be and are left out.
    """
    norms = np.asarray(norms, np.float64)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if len(norms) < FEWEST_STEPS:
        return None, (
            f"A bound is drawn from at least {FEWEST_STEPS} applied steps with a finite norm; there are {len(norms)}. "
            "1.0 suits most networks to begin with."
        )
    quarter = len(norms) // 4
    rise = float(np.median(norms[-quarter:]) / np.median(norms[:quarter]))
    believed, those, caution = norms, "the norms of this run", ""
    if rise >= RISEN:
        believed, those = norms[:quarter], "the norms of the first quarter of this run"
        caution = f" The norms rose {rise:.2g}-fold by its last quarter; if that is expected, take a larger bound."
    high, median = (float(value) for value in np.percentile(believed, [BOUND_PERCENTILE, 50]))
    bound = float(f"{min(high, HIGHEST_MULTIPLE * median):.{SIGNIFICANT_DIGITS - 1}e}")
    if high > HIGHEST_MULTIPLE * median:
        spikes = f"their 90th percentile ({high:.3g}) lies among the spikes."
        return bound, f"It is ten times the median of {those} ({median:.3g}); {spikes}{caution}"
    return bound, f"It is the 90th percentile of {those} ({high:.3g}); their median is {median:.3g}.{caution}"


def _percentiles(norms: np.ndarray) -> dict[int, float]:
    if not len(norms):
        return {}
    return {p: float(norm) for p, norm in zip(PERCENTILES, np.percentile(norms, PERCENTILES), strict=True)}
