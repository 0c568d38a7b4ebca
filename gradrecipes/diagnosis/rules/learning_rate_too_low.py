"""learning_rate_too_low: healthy weights and gradients, but steps too short to learn in a reasonable time.

## What it does
Fires where the trial's loss hardly fell, an update changed a typical layer by less than a hundred-thousandth of its
size, and the net learns in the same steps at ten, a hundred or a thousand times the rate: its loss falls, or, of a loss
of which it can lower a small share alone, its answers begin to depend on the inputs. Without a trial, in the
record of a real training, it needs at least 200 such steps. It fires as well where the loss of a run that is no better
than a constant prediction falls ten times as far at each of these rates: steps that are far too short follow the slope.
And it fires where a schedule falls to a hundredth before all samples were seen once, while the gradients are as large
as before: its decay was counted in epochs. So it does where that leaves a third of a planned training, and the same
steps at the highest rate end at less than half the loss: above half the loss of a constant prediction; or above a tenth
of it, if the loss of rows that were not trained on is halved as well. And it
fires where a net is far behind a simple function of the inputs after all of its training, while the same steps at ten
or a hundred times the rate end at less than half the loss.

## Why it is bad
About a thousandth of the weights' size per step is usual. A hundred times less takes a hundred times as long, which
looks like a net that cannot learn. Adadelta is the classic: its rate in the literature is 1.0, Keras' default is 0.001.

## Example
```python
keras.optimizers.SGD(learning_rate=1e-6)
keras.optimizers.Adadelta()  # its learning_rate is 0.001
```

## Remedy
Raise the rate by the factor found here, or find the range with `gr.probes.learning_rate_range`.

## References
- Smith, "Cyclical learning rates", arXiv 1506.01186: the range test.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, counted
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import Setting
from gradrecipes.core.trace.trial_reading import AS_IT_IS, TrialReading, VariationResult, at_rate
from gradrecipes.diagnosis.facts.divergences import (
    MIN_WEIGHT_GROWTH,
    MUCH_LEFT,
    at_fault,
    far_ahead,
    learned_at_highest,
    weight_growth,
)
from gradrecipes.diagnosis.facts.readings import middle, rounded
from gradrecipes.diagnosis.judgement import rates as rates_of
from gradrecipes.diagnosis.keras_lines import recorded_rate
from gradrecipes.diagnosis.outcome import (
    HALVED_END,
    LEARNING,
    PROVEN,
    STALLED,
    Verdict,
    fixing_rate,
    variation,
    variation_evidence,
    verdict,
)
from gradrecipes.diagnosis.prescriptions import prescription, set_learning_rate
from gradrecipes.diagnosis.registry import rule

SHORT_UPDATE = 1e-4  # update norm over weight norm of a typical layer; 1e-3 is usual, fine-tuning has 1e-4
SHORTEST_UPDATE = 1e-6  # the same, at which no trial is needed to say so
LONG_ENOUGH = 200  # steps of a recorded training
MIN_GAIN = 10.0  # fall of the varied run over that of the trial
GOOD_FALL = 0.05  # relative fall of the varied run, over 40 steps
DECAYED_UPDATE = 1e3  # first update over the later ones, of a rate that decays to nothing within a hundred steps
SAME_PROPORTION = 2.0  # by which the fall may differ from ten times that at a tenth of the rate
LEARNED_END = 0.9  # end over the baseline below which a run at rest has learned
ALIVE_GRADIENT = 0.1  # last gradient norm over the first: the gradients are still there


@rule(
    code="learning_rate_too_low",
    kind=Kind.CAUSE,
    title="The steps are too short to learn anything",
    short="learning rate too low",
    order=210,
    brings_about=("stalled_loss",),
)
def learning_rate_too_low(trace: Trace) -> Finding | None:
    """Tell whether the steps are too short to learn anything, and by what factor."""
    seen = verdict(trace)
    update = _typical_update(trace)
    if not seen.unhealthy and (over := _over_too_early(trace, seen)) is not None:
        return over
    outlearned = _outlearned(trace, seen)
    short = update < SHORT_UPDATE and weight_growth(trace) < MIN_WEIGHT_GROWTH
    if seen.unhealthy or (not short and outlearned is None):
        return None
    factor = outlearned or fixing_rate(trace, lower=False)
    if outlearned is not None:
        proven = True
    elif factor is not None and seen.fall < GOOD_FALL:
        result = variation(trace, at_rate(factor))
        fall = None if result is None else result.fall
        proven = fall is not None and fall >= max(GOOD_FALL, MIN_GAIN * seen.fall)
        answers = (trace.probes.trial or TrialReading()).answers
        if answers is not None and not answers.depend:  # a loss of which the net can lower a small share alone
            proven = proven or bool(result is not None and result.outputs_learned)
    else:
        proven = False
    if not proven and seen.state != LEARNING and _dies(trace, update):
        return _died(trace, update, seen)
    recorded = not trace.probes.trial and len(trace) >= LONG_ENOUGH and update < SHORTEST_UPDATE
    proportional = not proven and _falls_in_proportion(trace, seen)
    if not proven and not proportional and not (recorded and seen.state == STALLED):
        return None
    if learned_at_highest((trace.probes.trial or TrialReading()).rates) is not None:
        return None  # the schedule rises to a rate that trains
    factor = PROPORTIONAL_RATES[-1] if proportional else factor or 100.0
    rate = recorded_rate(trace)
    statement = (
        f"An update changes a typical layer by {rounded(update)} of its size; about 1e-3 is usual."
        if math.isfinite(update)
        else "The updates are too small to be measured."
    )
    return Finding(
        code="learning_rate_too_low",
        title=f"The learning rate{f' {rounded(rate)}' if rate else ''} is about {factor:,.0f} times too low",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=PROVEN if proven else 0.7,
        explanation=(
            f"{statement} The loss {seen.course}. Weights and gradients are healthy: the steps have the right "
            "direction and are too short."
        ),
        evidence=(
            Evidence(statement, update, 1e-3, "update norm over weight norm"),
            *variation_evidence(trace, at_rate(factor)),
        ),
        prescriptions=(
            set_learning_rate(
                trace,
                factor,
                "Up to that rate the loss falls in proportion to it."
                if proportional
                else "With steps that much longer the same net learns.",
            ),
        ),
    )


def _outlearned(trace: Trace, seen: Verdict) -> float | None:
    """Return by how much higher a rate halves the loss of a net that is far behind a simple function, or None."""
    found, twin = far_ahead(trace), at_fault(trace, Setting.OPTIMIZER)
    if found is None or (found.faults and twin is None):  # another setting is at fault
        return None
    if twin is not None and twin.rate is not None:
        return twin.rate if twin.rate > 1.0 else None
    for factor in (10.0, 100.0):
        end = (variation(trace, at_rate(factor)) or VariationResult()).end
        if end is not None and 0 <= end < HALVED_END * seen.end:
            return factor
    return None


PROPORTIONAL_RATES = (10.0, 100.0, 1e3)


def _falls_in_proportion(trace: Trace, seen: Verdict) -> bool:
    """Return whether a run that has not learned falls in proportion to the rate, over three orders of magnitude."""
    if seen.state != STALLED or not seen.end_over_baseline >= LEARNED_END:
        return False
    tried = [variation(trace, one) for one in (AS_IT_IS, *map(at_rate, PROPORTIONAL_RATES))]
    falls = [math.nan if one is None or one.fall is None else one.fall for one in tried]
    return all(
        low > 0 and 10.0 / SAME_PROPORTION <= high / low <= 10.0 * SAME_PROPORTION
        for low, high in itertools.pairwise(falls)
    )


def _dies(trace: Trace, update: float) -> bool:
    """Say whether the steps shrank to nothing while the gradients did not: a schedule is over before it began."""
    first, norms = middle(trace.samples["update_ratio"][0]), trace.gradient_norm
    alive = len(norms) > 1 and float(norms[-1]) > ALIVE_GRADIENT * float(norms[0])
    return alive and update < SHORTEST_UPDATE and first > DECAYED_UPDATE * max(update, 1e-30)


def _over_too_early(trace: Trace, seen: Verdict) -> Finding | None:
    """Return the finding where the schedule is over before all samples were seen once, or before anything is learned.

    The gradients are as large as before.
    """
    rates, data = rates_of(trace), trace.probes.data
    size, norms = trace.description.batch_size, trace.gradient_norm
    if rates is None or rates.over_step is None or data is None or not size or not data.samples or len(norms) < 2:
        return None
    more = rates.steps if rates.planned and rates.steps is not None else math.inf
    alive = float(norms[-1]) > ALIVE_GRADIENT * float(norms[0])
    if not alive:
        return None
    lowers = f"The schedule lowers the learning rate to less than a hundredth within {rates.over_step:,} steps"
    if rates.over_step < data.samples / size and more >= 2 * rates.over_step:
        a_pass = math.ceil(data.samples / size)
        statement = (
            f"{lowers}, where one pass over the data takes {a_pass:,}, while the gradients are as large as before"
        )
        when, expected = ", before all samples were seen once", data.samples / size
    elif (ends := _ends_if_held(trace, seen)) is not None:
        statement = f"{lowers} of {more:,}. {ends}"
        when, expected = f" of {more:,}, with much left to learn", float(more)
    else:
        return None
    return Finding(
        code="learning_rate_too_low",
        title=f"The schedule is over after {counted(rates.over_step, 'step')}{when}",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=0.9,
        explanation=f"{statement}. A schedule counts steps, not epochs. The loss {seen.course}.",
        evidence=(Evidence(f"{statement}.", float(rates.over_step), expected, "the schedule"),),
        prescriptions=(prescription("longer_schedule"),),
    )


def _ends_if_held(trace: Trace, seen: Verdict) -> str | None:
    """Return in words the ends of the further steps, as planned and at the highest rate, if that halves the loss.

    Of a net that has learned the better part, the loss of rows that it was not trained on has to be halved as well.
    """
    rates, further = rates_of(trace), (trace.probes.trial or TrialReading()).further
    own = further[0].end if len(further) == 1 else None
    held = None if rates is None or rates.held is None else rates.held.end
    high = seen.baseline if seen.baseline > 0 else abs(seen.start)
    if rates is None or own is None or held is None or not held < HALVED_END * own:
        return None
    if own > HALVED_END * high:
        return f"The loss ends at {rounded(own)}, and at {rounded(held)} if the rate stays at its highest"
    if rates.unseen is None or not own > MUCH_LEFT * high:
        return None
    planned, at_highest, noise = rates.unseen
    words = f"is {rounded(planned)} in the end, and {rounded(at_highest)} if the rate stays at its highest"
    return f"The loss of rows held back {words}" if at_highest + 2.0 * noise < HALVED_END * planned else None


def _died(trace: Trace, update: float, seen: Verdict) -> Finding:
    first = middle(trace.samples["update_ratio"][0])
    statement = (
        f"The first update changed a typical layer by {rounded(first)} of its size, the later ones by "
        f"{rounded(update)}, while the gradients did not shrink: the learning rate dropped to nothing within the "
        "first hundred steps."
    )
    return Finding(
        code="learning_rate_too_low",
        title="The schedule lowers the learning rate to nothing before anything is learned",
        kind=Kind.CAUSE,
        severity=Severity.WARNING,
        confidence=0.9,
        explanation=f"{statement} The loss {seen.course}.",
        evidence=(Evidence(statement, update, first, "update norm over weight norm, first and later steps"),),
        prescriptions=(prescription("longer_schedule"),),
    )


def _typical_update(trace: Trace) -> float:
    """Return the update ratio of the median layer in the later half of the samples, after a schedule."""
    ratios = trace.samples["update_ratio"]
    if not len(ratios):
        return math.nan
    return middle(np.array([middle(row) for row in ratios[len(ratios) // 2 :]]))
