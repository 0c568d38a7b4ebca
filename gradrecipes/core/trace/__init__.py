"""The record of a training, typed: what the model is, what was measured at each step, and what probes saw."""

from gradrecipes.core.trace.trace import (
    APPLIED,
    HISTOGRAM_BINS,
    HISTOGRAM_HIGHEST,
    HISTOGRAM_LOWEST,
    OUTCOMES,
    SAMPLE_READINGS,
    SKIPPED_GRADIENT,
    SKIPPED_LOSS,
    SKIPPED_LOSS_OUTLIER,
    SKIPPED_NORM_OUTLIER,
    SKIPPED_OVERFLOW,
    STEP_READINGS,
    Trace,
)

__all__ = [
    "APPLIED",
    "HISTOGRAM_BINS",
    "HISTOGRAM_HIGHEST",
    "HISTOGRAM_LOWEST",
    "OUTCOMES",
    "SAMPLE_READINGS",
    "SKIPPED_GRADIENT",
    "SKIPPED_LOSS",
    "SKIPPED_LOSS_OUTLIER",
    "SKIPPED_NORM_OUTLIER",
    "SKIPPED_OVERFLOW",
    "STEP_READINGS",
    "Trace",
]
