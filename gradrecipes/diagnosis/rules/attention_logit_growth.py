"""attention_logit_growth: the logits of an attention are so large that each query attends to a single key.

## What it does
Reads, for every softmax over products of queries and keys, how far the highest logit of a row lies above the lowest and
how much the largest weight takes, before the steps and after them. It fires where a row is one-hot on average: from the
start in a run that then fails, or after growth. In a training that learns it fires only where the smallest weights are
exactly 0 and the logits have multiplied.

## Why it is bad
A weight that lies `spread` below the largest logit is exp(-spread) of the largest weight. At 16.6 that is below the
rounding of float32, at 88 it is exactly 0, and so is the gradient that would undo it: the attention cannot change its
choice. Logits grow with the product of two weight matrices, so a learning rate that is slightly too high makes them
grow faster and faster, long before the loss moves.

## Example
```python
queries, keys = keras.random.normal((2, 12, 256)), keras.random.normal((2, 12, 256))
scores = keras.ops.matmul(queries, keras.ops.transpose(keys, (0, 2, 1)))  # not divided by sqrt(256)
weights = keras.ops.softmax(scores)
```

## Remedy
Divide by the root of the size of the keys; normalize queries and keys; cap the logits; lower the learning rate.

## References
- Dehghani et al., "Scaling vision transformers to 22 billion parameters", arXiv 2302.05442.
- Wortsman et al., "Small-scale proxies for large-scale transformer training instabilities", arXiv 2309.14322.
- Zhai et al., "Stabilizing transformer training by preventing attention entropy collapse", arXiv 2303.06296.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import AttentionReading, SignalReading
from gradrecipes.core.trace.trial_reading import FITTING_WEIGHTS
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.outcome import fixed_by, fixing_rate, verdict
from gradrecipes.diagnosis.prescriptions import prescription, set_learning_rate
from gradrecipes.diagnosis.registry import FAILED_RUN, rule

ROUNDED_AWAY = 24 * math.log(2)  # logits below the largest at which a weight is under the rounding of float32
EXACTLY_ZERO = 88.0  # the same at which exp() is below the smallest float32
ONE_HOT = 0.8  # share of the largest weight, in the mean over rows
MIN_GROWTH = 4.0  # spread after the steps over that before; healthy trainings double theirs
MIN_KEYS = 4  # among two or three keys one may well take nearly all


class Sharp(NamedTuple):
    """One attention that is one-hot, as it was before the steps and as it is after them."""

    before: AttentionReading
    after: AttentionReading
    grown: bool


@rule(
    code="attention_logit_growth",
    kind=Kind.CAUSE,
    title="Each query of an attention attends to a single key",
    short="attention logits too large",
    order=192,
    brings_about=("vanishing_gradient", *FAILED_RUN),
)
def attention_logit_growth(trace: Trace) -> Finding | None:
    """Tell which attention is one-hot, and whether it was so from the start."""
    found = _sharpest(trace)
    if found is None:
        return None
    seen, rate = verdict(trace), fixing_rate(trace, lower=True)
    failing = not seen.learned or seen.slow
    on_its_way = found.grown and found.after.spread >= EXACTLY_ZERO
    if not (failing or on_its_way):
        return None
    before, after = found.before, found.after
    shown = after if found.grown else before
    where = f"the attention {shown.name.rsplit('/', 1)[-1]!r}"
    if found.grown:
        title = f"The logits of {where} grew until each query attends to a single key"
        story = (
            f"In {where} the logits of a row spanned {rounded(before.spread)} at first and span "
            f"{rounded(after.spread)} now"
        )
    else:
        title = f"With the logits of {where} each query attends to a single key from the start"
        story = f"In {where} the logits of a row span {rounded(before.spread)} before the first step"
    proven = rate is None and not fixed_by(trace, FITTING_WEIGHTS)
    return Finding(
        code="attention_logit_growth",
        title=title,
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if failing else Severity.WARNING,
        confidence=0.85 if proven else 0.7,
        explanation=(
            f"{story}, so the largest weight takes {rounded(100 * shown.top)}% of each row. The weight of a logit "
            f"{rounded(ROUNDED_AWAY)} below the largest rounds to 0, and so does the gradient that could raise it "
            "again."
        ),
        evidence=(
            Evidence(f"{story}.", shown.spread, ROUNDED_AWAY, "arXiv 2303.06296"),
            Evidence("Share of the largest weight, in the mean over rows.", shown.top, ONE_HOT, "this record"),
            Evidence("Largest logit.", shown.largest_logit, None, "arXiv 2309.14322"),
        ),
        prescriptions=(
            prescription("normalized_attention"),
            *((set_learning_rate(trace, rate, "The logits then grow less from step to step."),) if rate else ()),
        ),
    )


def _sharpest(trace: Trace) -> Sharp | None:
    before = (trace.probes.signal or SignalReading()).attention
    after = {one.name: one for one in (trace.probes.signal_after or SignalReading()).attention}
    pairs = [(one, after.get(one.name, one)) for one in before if one.keys >= MIN_KEYS]
    found = [Sharp(old, new, True) for old, new in pairs if _one_hot(new) and new.spread >= MIN_GROWTH * old.spread]
    found = found or [Sharp(old, new, False) for old, new in pairs if _one_hot(old)]
    return max(found, key=lambda one: (one.after if one.grown else one.before).spread, default=None)


def _one_hot(read: AttentionReading) -> bool:
    return read.spread >= ROUNDED_AWAY and read.top >= ONE_HOT and math.isfinite(read.spread)
