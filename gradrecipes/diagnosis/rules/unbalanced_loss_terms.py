"""unbalanced_loss_terms: one term of a loss outweighs the others, which are not learned.

## What it does
Looks at the terms of a sum: the losses of several outputs with their weights, what layers add to the loss (penalties on
weights, a KL divergence), and the parts that a user's own train step returns with its loss, whose weights are found by
least squares. It fires where one term makes up nearly all of the sum and another one does not fall. For outputs and
penalties, the trial is repeated with terms that start equally large, or without penalties. Where the answers do not
depend on the inputs, the steps are run without the terms that the answers have no part in, then with them again: it
fires where the answers come to depend on the inputs without, and cease to with them (posterior collapse of a
variational autoencoder). Where answers that are equal for all samples solve all terms but one, any larger term will do.

## Why it is bad
The gradient of a sum is the sum of the gradients. A term with a thousandth of the gradient moves the shared weights by
less than the noise of the larger one, and is never learned, while the sum falls and looks healthy.

## Example
```python
model.compile("adam", loss={"label": "sparse_categorical_crossentropy", "box": "mse"}, loss_weights={"label": 1e-6})
```

## Remedy
Weight the terms so that they start equally large; for equations, adapt the weights during training.

## References
- Chen et al., "GradNorm", arXiv 1711.02257.
- Wang, Teng, Perdikaris, "Understanding and mitigating gradient pathologies in physics-informed neural networks",
  arXiv 2001.04536.
- Lucas et al., "Don't blame the ELBO!", arXiv 1911.02469: a large weight of the divergence is what collapses a code.
- Kendall, Gal, Cipolla, arXiv 1705.07115: weights by uncertainty.
"""

from __future__ import annotations

from typing import NamedTuple

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity, counted
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import BALANCED_TERMS, UNREGULARIZED, OutputTrial, TrialReading
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import DROWNING_RATIO, OUTWEIGHING_RATIO, of_columns, outweighed_part
from gradrecipes.diagnosis.keras_lines import optimizer_line, recorded_rate
from gradrecipes.diagnosis.outcome import fixes, variation, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

PENALTIES = "what layers add to the loss"
FALLEN_TERM = 0.5  # the end over the start of a term that falls: one that is not lost


class Terms(NamedTuple):
    """Name the term that makes up the loss and the one that is not learned, with their sizes at the start."""

    large: str
    small: str
    large_size: float
    small_size: float
    small_end: float
    proven: bool


@rule(
    code="unbalanced_loss_terms",
    kind=Kind.CAUSE,
    title="One term of the loss outweighs the others",
    short="one term of the loss outweighs the others",
    order=95,
    brings_about=("excessive_regularization", "exploding_gradient", "stalled_loss"),
)
def unbalanced_loss_terms(trace: Trace) -> Finding | None:
    """Tell which term of the loss is not learned, beside which other one."""
    if verdict(trace).unhealthy:
        return None
    if (held := _of_answers(trace)) is not None:
        return held
    found = _of_outputs(trace) or _of_parts(trace)
    if found is None:
        return None
    ratio = found.large_size / found.small_size
    large = found.large[0].upper() + found.large[1:]
    statement = (
        f"{large} begins at {rounded(found.large_size)} and {found.small} at {rounded(found.small_size)}, "
        f"{rounded(ratio)} times less"
    )
    trial = trace.probes.trial or TrialReading()
    taken = f" after {trial.steps + trial.further_steps:,} steps" if trial.later else ""
    after = f"{found.small} ends at {rounded(found.small_end)}{taken}"
    return Finding(
        code="unbalanced_loss_terms",
        title=f"{large} outweighs {found.small} {rounded(ratio)} times, which is not learned",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if found.proven else Severity.WARNING,
        confidence=0.95 if found.proven else 0.75,
        explanation=(
            f"{statement}, and {after}. The gradient of a sum is the sum of the gradients: the smaller term has no "
            "visible effect beside the larger one, and the sum falls without it."
        ),
        evidence=(
            Evidence(f"{statement}.", ratio, 1.0, "this trial; arXiv 1711.02257"),
            Evidence(f"{after[0].upper()}{after[1:]}.", found.small_end, None, "this trial"),
            *_balanced(trace),
        ),
        prescriptions=(_reweigh(trace, found),),
    )


def _of_answers(trace: Trace) -> Finding | None:
    """Return the finding where a term keeps the answers from depending on the inputs, as a KL divergence may."""
    trial = trace.probes.trial or TrialReading()
    read = trial.answers
    if read is None or read.held_by is None or read.gain is None:
        return None
    steps = counted(trial.steps + trial.further_steps, "step")
    statement = (
        f"After {steps} the loss is {rounded(read.own)}, and {rounded(read.constant)} where each answer is the mean "
        "of its batch: the answers do not depend on the inputs"
    )
    without = (
        f"In as many steps without {read.held_by} they come to: equal answers then cost {rounded(read.gain)} more. "
        f"When training goes on with {read.held_by}, that is lost again"
    )
    factor = 1.0 / max(2, read.entries)
    return Finding(
        code="unbalanced_loss_terms",
        title=f"{read.held_by[0].upper()}{read.held_by[1:]} outweighs the error: the answers ignore the inputs",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.95,
        explanation=(
            f"{statement}. {without}. The term rewards answers that carry no information, and costs more than the "
            "others gain by any: of a KL divergence this is called posterior collapse. It is summed over the codes; "
            "an error that is averaged over the entries of an answer is as many times too small beside it."
        ),
        evidence=(
            Evidence(f"{statement}.", read.own, read.constant, "this trial"),
            Evidence(f"{without}.", read.gain, 2.0 * read.noise, "this trial; arXiv 1911.02469"),
        ),
        prescriptions=(prescription("weigh_divergence", term=read.held_by, factor=f"{factor:.2g}"),),
    )


def _of_outputs(trace: Trace) -> Terms | None:
    """Compare the losses of the outputs, and what layers add to them."""
    trial = trace.probes.trial or TrialReading()
    if of_columns(trial):
        return None  # their size is that of the targets
    factors = {place: one.factor for place, one in enumerate(trace.description.outputs)}

    def size(one: OutputTrial, value: float | None) -> float:
        return factors.get(one.output, 1.0) * (value or 0.0)

    sizes = [(f"the loss of {one.name!r}", size(one, one.start)) for one in trial.outputs]
    if trial.penalties:
        sizes.append((PENALTIES, trial.penalties[0]))
    behind = [one for one in trial.outputs if not one.learned and size(one, one.start) > 0 and not _falling(one)]
    if len(sizes) < 2 or not behind:
        return None
    small = min(behind, key=lambda one: size(one, one.start))
    large = max(sizes, key=lambda term: term[1])
    result = variation(trace, BALANCED_TERMS)
    learned = sum(one.learned for one in trial.outputs)
    proven = result is not None and (result.outputs_learned or 0) > learned
    without = large[0] == PENALTIES and fixes(variation(trace, UNREGULARIZED), verdict(trace))
    ratio = large[1] / size(small, small.start)
    # A rate that suits the large term may be too low for balanced ones: then the variation shows nothing.
    tried = result is not None and (result.outputs_learned or 0) >= max(1, learned)
    if not without and (ratio < OUTWEIGHING_RATIO or (not proven and (tried or ratio < DROWNING_RATIO))):
        return None
    name = f"the loss of {small.name!r}"
    return Terms(large[0], name, large[1], size(small, small.start), size(small, small.end), proven or without)


def _falling(one: OutputTrial) -> bool:
    """Return whether the loss of an output fell by half: it is on its way, and only slower than the others."""
    return one.start is not None and one.end is not None and one.end < FALLEN_TERM * one.start


def _of_parts(trace: Trace) -> Terms | None:
    """Find a part that is outweighed among those that a train step returns beside its loss."""
    trial = trace.probes.trial or TrialReading()
    found = outweighed_part(trial) if trace.description.own_train_step else None
    if found is None or (
        not trial.later and not (found.weighted and found.large_size >= DROWNING_RATIO * found.small_size)
    ):
        return None
    return Terms(repr(found.large), repr(found.small), *found[2:5], proven=False)


def _balanced(trace: Trace) -> tuple[Evidence, ...]:
    result, trial = variation(trace, BALANCED_TERMS), trace.probes.trial
    if result is None or result.outputs_learned is None or trial is None:
        return ()
    learned = sum(one.learned for one in trial.outputs)
    statement = (
        f"{learned} of {len(trial.outputs)} outputs beat a constant prediction as it is; {BALANCED_TERMS.words}, "
        f"{result.outputs_learned} do."
    )
    return (Evidence(statement, float(result.outputs_learned), float(len(trial.outputs)), "this trial"),)


def _reweigh(trace: Trace, found: Terms) -> Prescription:
    trial = trace.probes.trial or TrialReading()
    if len(trial.outputs) > 1:
        starts = {one.name: one.start for one in trial.outputs if one.start and one.start > 0}
        weights = ", ".join(f"{name!r}: {1.0 / start:.2g}" for name, start in starts.items())
        code = (
            "import keras\n\n"
            "model.compile(\n"
            f"    optimizer={optimizer_line(trace, recorded_rate(trace) or 1e-3)},\n"
            "    loss=model.loss,\n"
            f"    loss_weights={{{weights}}},  # each loss begins at 1\n"
            ")\n"
        )
        title = "Set loss weights so that the losses start equally large"
    else:
        factor = found.small_size / found.large_size
        code = f"weight = {factor:.2g}  # times the weight that {found.large.strip(chr(39))} has now\n"
        title = f"Divide the weight of {found.large} by {rounded(found.large_size / found.small_size)}"
    return prescription("balance_loss_terms", title=title, lines=code)
