"""loss_without_gradient: the loss, or a term of it, does not depend on the weights as far as the gradient can tell.

## What it does
Fires where the slope of a user's own loss is exactly 0 at the predictions of every sample of a batch, and the loss of
the trial does not fall. Of a train step that returns the terms of its loss, it fires where a term has the same value on
the same batch in every pass, although the weights moved, or is made of the weights that it is differentiated in while
no slope leads to these, as of samples that are copied before they are judged. Of a step of several optimizers, as that
of a GAN, it fires where one loss is won outright, another one does not fall, and the gradients of all layers fall to a
tenth. It fires where a layer that the answers depend on gets no gradient at any step: an operation behind it has none.
It also fires where the answers are the same for all samples, before the training and after a trial that stalled:
nothing of the inputs reaches them, and no slope tells one sample from another.

## Why it is bad
Gradient descent sees slopes only. A sign, a rounding, a threshold or an argmax is flat wherever it does not jump; a
clip is flat outside its range; the second derivative of a net of ReLUs is 0 wherever it exists. Such a term is not
learned, however large it is.

## Example
```python
import keras


def wrong(y, p):  # of labels -1 and 1: how many are on the wrong side
    return keras.ops.mean(keras.ops.sign(p) != y)
```

## Remedy
Put a smooth function in the place of the hard one: tanh or a sigmoid for a sign or a threshold, a softmax for an
argmax; activations with a second derivative, such as tanh or swish, for a loss of derivatives.

## References
- Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons", arXiv 1308.3432.
- Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", 2019: smooth activations.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, named
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.probes import LossReading
from gradrecipes.core.trace.trial_reading import CUT_OFF, NO_GRADIENT, TrialReading
from gradrecipes.diagnosis.facts.data_facts import heads
from gradrecipes.diagnosis.facts.readings import MIN_INPUT_RMS, rounded
from gradrecipes.diagnosis.judgement import HEALTHY, REGULARIZES, UNDECIDED, UNNAMED, judge, weights_of_parts
from gradrecipes.diagnosis.outcome import (
    FIRST_STEPS,
    LEARNING,
    OSCILLATING,
    STALLED,
    WON_END,
    falling,
    rival_losses,
    verdict,
)
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

EQUAL_ANSWERS = 1e-6  # spread of the answers to the samples over their size: ten rounding errors of float32
MAX_ANSWER_RMS = 100.0  # of larger ones, as of a bias at the mean of unscaled targets, rounding hides the differences
FALLEN_GRADIENT = 0.1  # last over first gradient of each layer; a generator that is losing and can follow has more
SAME = 1e-6  # relative difference of a term from itself one pass later, up to which it did not change: float32 rounding


@rule(
    code="loss_without_gradient",
    kind=Kind.CAUSE,
    title="The loss, or a term of it, has no gradient",
    short="a loss without a gradient",
    order=54,
    brings_about=("unbalanced_loss_terms", "oscillating_loss", "stalled_loss"),
)
def loss_without_gradient(trace: Trace) -> Finding | None:
    """Tell which loss, or which term of it, no weight can lower."""
    ways = (_of_head, _of_answers, _of_term, _of_rivals, _of_layers, _of_equal_answers)
    return next((found for way in ways if (found := way(trace)) is not None), None)


def _of_head(trace: Trace) -> Finding | None:
    head = next((one for one in heads(trace) if one.measured.flat), None)
    if head is None or verdict(trace).state not in (STALLED, OSCILLATING):
        return None
    statement = f"The slope of the loss {head.name!r} is exactly 0 at the predictions of every sample of a batch"
    return _finding(f"The loss {head.name!r} has no gradient: its slope is 0 at every prediction", statement, trace)


def _of_answers(trace: Trace) -> Finding | None:
    """Tell that the loss of a step has no slope in any answer of a net that does not learn."""
    read = (trace.probes.trial or TrialReading()).answers
    if read is None or read.slope != 0.0 or not read.own or verdict(trace).state == LEARNING:
        return None
    statement = (
        f"The slope of the loss is exactly 0 in every answer of the net, at a loss of {rounded(read.own)}: only other "
        "terms, such as penalties on weights, move the weights"
    )
    return _finding("The loss has no gradient: its slope is 0 in every answer", statement, trace)


def _of_term(trace: Trace) -> Finding | None:
    trial = trace.probes.trial or TrialReading()
    if trial.cut_off:
        term = trial.cut_off[0].replace(" of the sum", "")
        statement = (
            f"A loss of the train step is a sum, and its {term} is made of the weights in which it is "
            "differentiated, but no slope leads to these: something on the way is held fixed, copied or rounded"
        )
        return _finding(f"The {term} of a loss has no gradient in the weights that it is to train", statement, trace)
    if not trace.description.own_train_step or not trial.batches or trial.steps < 2 * trial.batches:
        return None
    if not np.isfinite(trace.gradient_norm).all() or not np.any(trace.gradient_norm > 0):
        return None
    learns = verdict(trace).state == LEARNING and judge(trace, ()).verdict != UNDECIDED
    for name, weight in weights_of_parts(trial).items():
        values = np.array(trial.logs[name], float)
        before, after = values[: -trial.batches], values[trial.batches :]
        small = 2.0 * weight * values[-1] < (trial.logs["loss"][-1] or 0.0)
        if UNNAMED.match(name) and (small or learns):
            continue  # it may be a penalty, or what the targets alone make up
        if not REGULARIZES.search(name.lower()) and np.all(np.abs(after - before) <= SAME * np.abs(before)):
            statement = (
                f"The term {name!r} of the loss is {rounded(float(np.median(values)))}, and has the same value on the "
                f"same batch in every pass, although the weights move"
            )
            return _finding(f"The term {name!r} of the loss has no gradient: no step changes it", statement, trace)
    return None


def _of_rivals(trace: Trace) -> Finding | None:
    """Tell whether one of several nets has won, and nothing is left that another one could follow."""
    rivals = {name: falling(loss, trace) for name, loss in rival_losses(trace).items() if np.isfinite(loss).all()}
    won = [name for name, one in rivals.items() if one.won]
    lost = [name for name, one in rivals.items() if not one.falls]
    norms = trace.layer_gradient_norm.astype(float)
    quarter = len(norms) // 4
    if not won or not lost or not quarter:
        return None
    first, last = (np.median(part, axis=0) for part in (norms[:FIRST_STEPS], norms[-quarter:]))
    moved = first > 0  # not of a layer that only holds others
    ends, other = rivals[won[0]], rivals[lost[0]]
    flat = abs(other.end) < WON_END * abs(other.first)  # log(1 - D) at its upper end
    if not moved.any() or not (flat or (last[moved] < FALLEN_GRADIENT * first[moved]).all()):
        return None
    left = float(np.max(last[moved] / first[moved]))
    statement = (
        f"{won[0]!r} went from {rounded(ends.first)} to {rounded(ends.end)}, {lost[0]!r} does not fall, and "
        + (f"ends at {rounded(other.end)}, where it started at {rounded(other.first)}" if flat else "")
        + ("" if flat else f"the gradients of all layers fell to {rounded(left)} of their size or less")
    )
    return replace(
        _finding(f"The loss {lost[0]!r} is flat where {won[0]!r} is won: its net gets no gradient", statement, trace),
        explanation=(
            f"{statement}. Where a discriminator is sure of everything, log(1 - D) of its answers is flat: the "
            "generator that should become better gets no gradient, and the game is over."
        ),
        prescriptions=(prescription("loss_that_does_not_saturate"),),
    )


def _of_layers(trace: Trace) -> Finding | None:
    """Tell which layers no gradient reaches, although the answers depend on their weights."""
    still = [one for one in (trace.probes.trial or TrialReading()).still if one.why in (NO_GRADIENT, CUT_OFF)]
    if not still:
        return None
    names = named([one.name for one in still])
    entries = sum(one.entries for one in still)
    at_all = "of the answers reaches" if still[0].why == CUT_OFF else "reaches"
    statement = (
        f"No gradient {at_all} the {entries:,} weights of {names} at any step, although the answers depend on them"
    )
    found = _finding(f"No gradient reaches the weights of {names}", statement, trace)
    return replace(
        found,
        severity=Severity.WARNING if judge(trace, ()).verdict == HEALTHY else Severity.CRITICAL,
        layer=still[-1].name if still[-1].name in trace.layers else None,
        explanation=(
            f"{statement}. An operation behind them has no gradient: an argmax, a rounding, a sign, a comparison, a "
            "cast to whole numbers, stop_gradient, or an excursion to numpy. What stands before it keeps its initial "
            "weights; only what stands behind it learns."
        ),
    )


def _of_equal_answers(trace: Trace) -> Finding | None:
    """Tell that the answers are the same for all samples, before the training and after the trial."""
    read, trial = (trace.probes.loss or LossReading()).outputs, trace.probes.trial or TrialReading()
    before = [one.sample_spread for one in read]
    if not before or trial.sample_spread is None or any((one.rms or 0.0) > MAX_ANSWER_RMS for one in read):
        return None
    spread = max([trial.sample_spread, *(math.inf if one is None else one for one in before)])
    averaged = trace.description.averages_batches
    if spread > (0.0 if verdict(trace).learned else EQUAL_ANSWERS) or (averaged and verdict(trace).learned):
        return None
    tiny = any(0 < (one.rms or 0.0) < MIN_INPUT_RMS for one in (trace.probes.data or DataReading()).inputs)
    statement = (
        "The net gives the same answer to all samples of a batch, before the first step and after the trial: they "
        f"differ by {rounded(spread)} of their size at most"
    )
    return replace(
        _finding("The answers are the same for all samples: nothing of the inputs reaches them", statement, trace),
        confidence=0.6 if tiny else 0.9,
        explanation=(
            f"{statement}. No gradient tells one sample from another, so the net learns the best constant prediction "
            "and no more. A mask that leaves out what it should keep, a product with 0, or inputs that are all equal "
            "cut the outputs off."
        ),
        evidence=(Evidence(f"{statement}.", spread, 1.0, "one batch, before and after the trial"),),
        prescriptions=(prescription("follow_two_samples"),),
    )


def _finding(title: str, statement: str, trace: Trace) -> Finding:
    return Finding(
        code="loss_without_gradient",
        title=title,
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.9,
        explanation=(
            f"{statement}. A sign, a rounding, a threshold or an argmax is flat, and so is the second derivative of a "
            "net of ReLUs: gradient descent cannot lower what does not change with the weights."
        ),
        step=verdict(trace).step,
        evidence=(Evidence(f"{statement}.", 0.0, None, "this trial; expected: a slope"),),
        prescriptions=(prescription("smooth_loss"),),
    )
