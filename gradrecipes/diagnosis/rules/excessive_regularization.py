"""excessive_regularization: dropout, penalties or constraints hold the net down, so that it does not learn.

## What it does
Looks at dropout, noise, penalties on weights or activations, and constraints on weights. It fires where the trial and
the further steps behind it end no better than a constant prediction, no other variation learns, and the net learns in
fewer steps without them. It fires as well where the same net with standard settings learns more than twice as much of
rows held back, and falls behind with this regularization. A net that learns with its regularization is not reported,
however strong that is.

## Why it is bad
Regularization trades the fit to the training data for one to new data. Where nothing is fitted there is nothing to
trade: a penalty that is larger than the loss is minimized in its place, by weights of 0; dropout of 0.95 leaves a unit
its input once in twenty steps; a constraint on the norm keeps the outputs within reach of 0.

## Example
```python
keras.layers.Dense(64, activation="relu", kernel_regularizer=keras.regularizers.L1(0.1))
```

## Remedy
Train without it until the net fits the training data, then add it back, one kind at a time, as weak as helps on
validation data.

## References
- Goodfellow, Bengio, Courville, "Deep Learning", section 11.4.1: regularize after the training data are fitted.
- Srivastava et al., "Dropout", JMLR 15, 2014: rates of 0.5 for hidden units, 0.2 for inputs.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity, listed
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import Setting
from gradrecipes.core.trace.trial_reading import UNREGULARIZED, TrialReading, VariationResult
from gradrecipes.diagnosis.facts.divergences import at_fault, left_of_error
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.judgement import UNDECIDED, judge
from gradrecipes.diagnosis.keras_lines import compile_lines, optimizer_line, recorded_rate
from gradrecipes.diagnosis.outcome import LEARNS_BELOW, PROVEN, Verdict, fixes, variation, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule


@rule(
    code="excessive_regularization",
    kind=Kind.CAUSE,
    title="Regularization keeps the net from learning",
    short="regularization too strong",
    order=155,
    brings_about=("oscillating_loss", "stalled_loss"),
)
def excessive_regularization(trace: Trace) -> Finding | None:
    """Tell whether the net learns only without its regularization."""
    result, held, seen = variation(trace, UNREGULARIZED), trace.description.regularization, verdict(trace)
    trial, blamed = trace.probes.trial or TrialReading(), at_fault(trace, Setting.REGULARIZATION)
    kinds = list(dict.fromkeys(one.words for one in held))
    names, steps = listed(kinds), trial.steps + trial.further_steps
    if result is not None and held and judge(trace, ()).verdict == UNDECIDED and _fixes(result, seen):
        reached = result.end
        statement = (
            f"{steps:,} steps with {names} end no better than a constant prediction; in as many without, the loss "
            f"falls to {rounded(reached)}"
        )
    elif held and blamed is not None:
        reached = blamed.own_linear
        statement = f"After {steps:,} steps with {names}, {left_of_error(blamed)}"
    else:
        return None
    return Finding(
        code="excessive_regularization",
        title=f"The net learns only without its regularization: {names}",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=PROVEN,
        explanation=(
            f"{statement}. Regularization trades the fit to the training data for one to new data; here little is "
            "fitted yet."
        ),
        layer=held[0].layer if held[0].layer in trace.layers else None,
        evidence=(Evidence(f"{statement}.", reached, LEARNS_BELOW * seen.baseline, "this trial"),),
        prescriptions=(
            prescription(
                "loosen",
                held=f"{kinds[0]} of {held[0].layer!r}",
                compile=compile_lines(optimizer_line(trace, recorded_rate(trace) or 1e-3)),
            ),
        ),
    )


def _fixes(result: VariationResult, seen: Verdict) -> bool:
    return fixes(result, seen) and not (result.over_baseline is not None and result.over_baseline >= LEARNS_BELOW)
