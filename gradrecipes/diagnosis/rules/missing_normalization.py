"""missing_normalization: blocks add up, and nothing normalizes the size of the sum.

## What it does
Follows the size of the signal at the points where branches are added. It fires where there are eight or more such
points, no normalization, the outputs grow twentyfold or more from the first to the last of them (a residual block with
He weights and without normalization makes the sum sqrt(2) times larger), and the trial failed. Three
blocks in a row of the user's own class are enough where each makes the signal three times larger, as a sum over
neighbours does.

## Why it is bad
sqrt(2) per block is a thousand after twenty blocks and 3e16 after a hundred, forwards and backwards alike. The output
is then far too large at the start, the loss is steep, and a step that suits the last block ruins the first.

## Example
```python
for _ in range(50):
    x = keras.layers.Add()([x, keras.layers.Dense(64)(keras.layers.Dense(64, activation="relu")(x))])
```

## Remedy
A normalization at the start of each block (pre-norm), or branches that start at zero: ReZero or Fixup.

## References
- Zhang et al., "Fixup initialization", arXiv 1901.09321; Bachlechner et al., "ReZero", arXiv 2003.04887.
- Xiong et al., "On layer normalization in the transformer architecture", arXiv 2002.04745.
"""

from __future__ import annotations

import math

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.diagnosis.facts.readings import (
    NORMALIZATIONS,
    RECURRENT,
    TOO_LARGE,
    WEIGHTED,
    count,
    kernels,
    layers,
    out_of_proportion,
    rounded,
    span,
)
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.diagnosis.prescriptions import add_residual_blocks, prescription
from gradrecipes.diagnosis.registry import LONG_STEPS, rule

MIN_SKIPS = 8  # places where branches are added; sqrt(2) each makes 16-fold
MIN_GROWTH = 10.0  # growth of the sum from the first to the last of them
PER_SKIP = 1.15  # growth at each; branches of Fixup or ReZero add next to nothing
FEW_BLOCKS, PER_BLOCK = 3, 3.0  # blocks in a row, and growth at each, that no weights of usual size explain
SUMS = {"Add", "Average"}
ADDING_RATIO = 1.05  # times what a layer gave, of a sum with something else
SAME_OUTPUT = 1e-4  # relative difference up to which what one block gives is what the next one takes


@rule(
    code="missing_normalization",
    kind=Kind.CAUSE,
    title="Sums grow from block to block because nothing normalizes them",
    short="sums without normalization",
    order=150,
    brings_about=(
        "embedding_spike",
        "attention_logit_growth",
        "exploding_gradient",
        "nonfinite_loss",
        "diverging_loss",
        "stalled_loss",
        *LONG_STEPS,
    ),
)
def missing_normalization(trace: Trace) -> Finding | None:
    """Tell whether the sums of a residual net grow for want of a normalization."""
    what, sums, reading = _sums(trace)
    multiplied = _multiply(sums) and what.startswith("blocks")
    enough = len(sums) >= MIN_SKIPS or multiplied
    if not enough or count(trace, NORMALIZATIONS) > len(sums) // 4 or not _harmed(trace):
        return None
    ends = span(sums, reading)
    if ends is None:
        return None
    total = ends[1] / ends[0]
    per_skip = total ** (1.0 / (len(sums) - 1))
    if total < MIN_GROWTH or per_skip < PER_SKIP:
        return None
    if multiplied:
        return _of_blocks(sums, total, per_skip)
    statement = (
        f"Over {len(sums)} {what} the signal grows {rounded(total)}-fold, {rounded(per_skip)} times at each, where He "
        "weights without normalization are expected to give 1.41 and a normalized net 1."
    )
    return Finding(
        code="missing_normalization",
        title=f"The residual sums grow {rounded(per_skip)}-fold per block because nothing normalizes them",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=(
            f"{statement} Each branch adds a signal as large as the one it is added to. The skip connections keep "
            "the gradient alive, but it grows with the signal, and a learning rate that suits the last block is "
            "too high for the first."
        ),
        layer=sums[-1].name,
        evidence=(Evidence(statement, per_skip, 1.0, "arXiv 1901.09321, section 2"),),
        prescriptions=(
            add_residual_blocks(trace),
            prescription("rezero"),
        ),
    )


def _multiply(blocks: list[LayerSignal]) -> bool:
    """Return whether a few blocks in a row each make the signal several times larger, as sums over neighbours do."""
    pairs = [(one.input_rms or 0.0, one.output_rms or 0.0) for one in blocks]
    return len(pairs) >= FEW_BLOCKS and all(0 < given * PER_BLOCK <= made < math.inf for given, made in pairs[1:])


def _of_blocks(blocks: list[LayerSignal], total: float, per_block: float) -> Finding:
    kind = blocks[0].kind
    statement = f"Over {len(blocks)} {kind} blocks the signal grows {rounded(total)}-fold, {rounded(per_block)} at each"
    return Finding(
        code="missing_normalization",
        title=f"Each {kind} makes the signal {rounded(per_block)} times larger, and nothing sets its size",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=f"{statement}. The weights have the usual size: the arithmetic of the block enlarges the signal.",
        layer=blocks[-1].name,
        evidence=(Evidence(f"{statement}.", per_block, 1.0, "one batch through the net"),),
        prescriptions=(prescription("mean_of_neighbours"),),
    )


def _sums(trace: Trace) -> tuple[str, list[LayerSignal], str]:
    """Return what adds a branch to what it came from, the layers that show it, and in which reading."""
    added = [layer for layer in layers(trace) if layer.kind in SUMS]
    if len(added) >= MIN_SKIPS or any(larger > TOO_LARGE for _, larger, _ in kernels(trace)):
        return "sums of branches", added, "output_rms"
    blocks = _blocks(trace)
    if len(blocks) >= MIN_SKIPS or _multiply(blocks):
        return f"blocks of kind {blocks[0].kind}", blocks, "output_rms"
    return "sums of branches", _sums_between(trace), "input_rms"


def _harmed(trace: Trace) -> bool:
    """Say whether a run did not learn, or, where the baseline is not known, begins with gradients out of proportion."""
    seen = verdict(trace)
    return not seen.learned or (math.isnan(seen.end_over_baseline) and out_of_proportion(trace))


def _blocks(trace: Trace) -> list[LayerSignal]:
    """Return the longest row of layers of the user's own kind, each of which takes what the one before gives.

    Their sums are arithmetic inside a call and no layers.
    """
    rows: dict[str, list[LayerSignal]] = {}
    longest: list[LayerSignal] = []
    for layer in layers(trace):
        if layer.kind in WEIGHTED | RECURRENT or not layer.input_rms or not layer.output_rms:
            continue
        row = rows.setdefault(layer.kind, [])
        if row and not math.isclose(row[-1].output_rms or 0.0, layer.input_rms, rel_tol=SAME_OUTPUT):
            row = rows[layer.kind] = []
        row.append(layer)
        longest = max(longest, row, key=len)
    return longest


def _sums_between(trace: Trace) -> list[LayerSignal]:
    """Return the weighted layers that take more than any layer gave since the weighted one before: arithmetic adds."""
    found, given = [], math.inf
    for layer in layers(trace):
        entered = layer.input_rms or 0.0
        if layer.kind in WEIGHTED:
            if entered > ADDING_RATIO * given:
                found.append(layer)
            given = 0.0
        elif entered > ADDING_RATIO * given:
            continue  # it takes the sum itself
        given = max(given, layer.output_rms or 0.0)
    return found
