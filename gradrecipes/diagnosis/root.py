"""Which cause explains which: the order in which trouble arises, and what is only a consequence of something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gradrecipes.core.finding import Finding, Kind

SURE = 0.75  # confidence from which on a cause explains others away
WORTH_SAYING = 0.5  # confidence below which a cause that another one explains is left out
MINUS = 0.3  # confidence that a cause loses which another one explains

DATA = ("nonfinite_data", "corrupt_batch")
MEANING = ("loss_output_mismatch", "unsafe_loss")
NUMERICS = ("float16_overflow", "optimizer_state")
SCALE = ("unscaled_inputs", "unscaled_targets")
WEIGHTS = ("exploding_initialization", "embedding_spike")
SHAPE = ("unbounded_activation", "recurrent_gain", "exploding_batch_normalization", "missing_normalization")
# What stands on the left is only a consequence where one of those on the right was found, and surely.
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "failing_step": (*DATA, "loss_output_mismatch", "recurrent_gain", "unbounded_activation"),
    "unsafe_loss": (*DATA, "loss_output_mismatch"),
    "optimizer_state": DATA,
    "float16_overflow": DATA,
    "unscaled_targets": ("loss_output_mismatch",),
    "plain_depth": ("exploding_initialization", "vanishing_initialization", "exploding_batch_normalization"),
    "saturated_units": (*SCALE, *WEIGHTS, "unbounded_activation", "recurrent_gain", "learning_rate_too_high"),
    "dead_units": (*SCALE, *WEIGHTS, "learning_rate_too_high", "loss_output_mismatch", "batch_too_small"),
    "learning_rate_too_high": (*DATA, *MEANING, *NUMERICS, *SCALE, *WEIGHTS, *SHAPE),
    "learning_rate_too_low": ("vanishing_initialization", "dead_units", "saturated_units", "optimizer_state"),
    "batch_too_small": (*DATA, *MEANING, *SCALE, *WEIGHTS, *SHAPE, "learning_rate_too_high"),
    "exploding_initialization": ("unbounded_activation",),
    "embedding_spike": (*DATA, "missing_normalization", "exploding_batch_normalization"),
}
UNEXPLAINED_IS_NO_ILLNESS = {"stalled_loss", "oscillating_loss", "vanishing_gradient"}


def weighed(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with less confidence in what others explain, and without what then is no illness.

    A cause that explains another leads to it, and to all that the other leads to. A loss that stands still, or jumps,
    is an illness only where a cause says why.
    """
    sure = {finding.code for finding in findings if finding.confidence >= SURE and finding.kind is Kind.CAUSE}
    explained = {finding.code: sure.intersection(EXPLAINED_BY.get(finding.code, ())) for finding in findings}
    kept = []
    for finding in findings:
        if explained[finding.code]:
            finding = dataclasses.replace(finding, confidence=max(0.0, finding.confidence - MINUS))
            if finding.confidence < WORTH_SAYING:
                continue
        follows = [one for one in findings if finding.code in explained[one.code]]
        onward = [code for one in follows for code in (one.code, *one.leads_to)]
        kept.append(dataclasses.replace(finding, leads_to=tuple(dict.fromkeys((*finding.leads_to, *onward)))))
    reached = {code for finding in kept if finding.kind is Kind.CAUSE for code in finding.leads_to}
    return [one for one in kept if one.code not in UNEXPLAINED_IS_NO_ILLNESS or one.code in reached]
