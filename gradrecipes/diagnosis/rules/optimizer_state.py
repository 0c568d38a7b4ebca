"""optimizer_state: the optimizer's settings or state turn healthy gradients into useless or non-finite updates.

## What it does
Looks at the settings that no optimizer works with (a momentum or beta of 1 or more, an epsilon of nothing, an epsilon
or a clipping bound that leaves next to nothing of a step, a weight decay that removes the weights) and at the state
that the optimizer starts with: a trial that learns with a fresh state, but not with the present one, proves the state
wrong. Where no other variation trains, the trial is repeated with the usual values of the settings that are not usual.
It fires only where the trial failed or did not learn, or learned less than half of what the same net with standard
settings does, and another optimizer makes up for it where no other rate does; and where the average of the weights that
replaces them when the training ends is mostly that of the first ones by then.

## Why it is bad
Adam divides by the square root of its average of squared gradients, plus epsilon. With an epsilon of 0, an entry whose
gradient was always 0 becomes 0 / 0; with one far above the gradients, the division is by a constant and the steps are
tiny; with a state from other weights, or from a spike of 1e20, the steps have nothing to do with the present gradients.

## Example
```python
keras.optimizers.Adam(epsilon=0.0)
keras.optimizers.Adam(beta_1=0.999, beta_2=0.9)  # swapped
```

## Remedy
The usual constants and a fresh optimizer.

## References
- Kingma and Ba, "Adam", arXiv 1412.6980; Reddi et al., arXiv 1904.09237 (memory and convergence).
"""

from __future__ import annotations

import numpy as np

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy, in_words
from gradrecipes.core.trace.data_reading import DataReading, LinearReading, Setting
from gradrecipes.core.trace.description import OptimizerDescription
from gradrecipes.core.trace.trial_reading import FRESH_OPTIMIZER, USUAL_OPTIMIZER, TrialReading, VariationResult
from gradrecipes.diagnosis.facts.divergences import at_fault, left_of_error, saw_all
from gradrecipes.diagnosis.facts.readings import layer_descriptions, middle, rounded
from gradrecipes.diagnosis.judgement import rates
from gradrecipes.diagnosis.outcome import fixed_by, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import fresh_optimizer
from gradrecipes.diagnosis.registry import FAILED_RUN, rule

NO_EPSILON = 1e-15  # below it an entry whose gradient is 0 is divided by 0; Keras' own are 1e-7, 1e-30 in Adafactor
EPSILON_OVER_GRADIENT = 100.0  # epsilon over the root mean square of a gradient's entries: it rules the division
USUAL_BETA = 0.9  # beta_1; Adam's analysis needs beta_1^2 < beta_2, section 4 of arXiv 1412.6980
MODERATE_GRADIENT = 1e4  # gradient norm out of which no healthy update makes NaN; Adam's squares overflow beyond 1.8e19
TINY_CLIP = 1e-4  # bound over the gradient norm: that much is left of a step
MAX_DECAYED_SHARE = 0.05  # weight decay times learning rate: share of the weights that each step takes away
LARGE_ACCUMULATOR = 100.0  # Keras begins with .1, and a gradient's square is seldom larger
MAX_LEFT = 0.5  # share of the first weights in an average at the end of the training
FORGETS_MOST = 0.2  # share of what the steps between two overwrites did, that an average has taken over by then
MOMENTA = ("momentum", "beta_1", "beta_2", "rho")
BOUNDS = ("clipnorm", "global_clipnorm", "clipvalue")


@rule(
    code="optimizer_state",
    kind=Kind.CAUSE,
    title="The optimizer's settings or state spoil its steps",
    short="the optimizer's settings or state",
    order=70,
    brings_about=(
        "missing_warm_up",
        "learning_rate_too_high",
        "learning_rate_too_low",
        "runaway_weights",
        "broken_validation",
        *FAILED_RUN,
    ),
)
def optimizer_state(trace: Trace) -> Finding | None:
    """Tell whether it is the optimizer itself that spoils the updates."""
    seen = verdict(trace)
    certain = _bad_constant(trace)
    blamed = at_fault(trace, Setting.OPTIMIZER)
    if seen.learned and certain is None and blamed is None:
        return None
    said = certain or _bad_setting(trace, broken=seen.unhealthy) or _bad_memory(trace) or _bad_slot(trace)
    said = said or _unusual(trace) or _at_fault(trace, blamed)
    if said is None:
        return None
    statement, measured, expected, sure = said
    if "=" not in statement.split()[0]:  # the name of an argument stays as it is written in a program
        statement = statement[0].upper() + statement[1:]
    return Finding(
        code="optimizer_state",
        title=statement.split(":")[0].split(";")[0],
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=sure,
        explanation=(
            f"{statement}. The gradients are as they should be; the steps that the optimizer makes of them are not."
        ),
        step=seen.step,
        evidence=(
            Evidence(f"{statement}.", measured, expected, "arXiv 1412.6980"),
            *variation_evidence(trace, FRESH_OPTIMIZER, USUAL_OPTIMIZER),
        ),
        prescriptions=(fresh_optimizer(trace),),
    )


Said = tuple[str, float | None, float | None, float]


def _bad_constant(trace: Trace) -> Said | None:
    """Return the setting that no optimizer works with, whatever the run has shown so far."""
    optimizer = trace.description.optimizer or OptimizerDescription("")
    slots = trace.probes.nonfinite_slots
    if slots:
        return (
            f"before the first step the optimizer's variable {slots[0]} holds NaN or infinity: so will every update",
            float(len(slots)),
            0.0,
            1.0,
        )
    for name in MOMENTA:
        value = optimizer.setting(name)
        if value is not None and (value >= 1.0 or value < 0.0):
            return f"{name}={rounded(value)} never decays: it must lie between 0 and 1", value, 0.9, 0.95
    fast, slow = optimizer.setting("beta_1"), optimizer.setting("beta_2")
    if fast is not None and slow is not None and fast > USUAL_BETA and fast**2 >= slow:
        return (
            f"beta_1={rounded(fast)} decays more slowly than beta_2={rounded(slow)}: the mean gradient outlasts "
            "the size that it is divided by",
            fast,
            USUAL_BETA,
            0.9,
        )
    every, momentum = optimizer.setting("ema_overwrite_frequency"), optimizer.setting("ema_momentum")
    planned = rates(trace)
    steps = None if planned is None or not planned.planned else planned.steps
    if optimizer.settings.get("use_ema") and momentum is not None and not every and steps:
        left = momentum**steps
        if left > MAX_LEFT:
            return (
                f"ema_momentum={rounded(momentum)} keeps {left:.0%} of the first weights in the average that replaces "
                f"the trained ones after the {steps:,} steps that are planned",
                left,
                MAX_LEFT,
                0.9,
            )
    return None


def _bad_setting(trace: Trace, *, broken: bool) -> Said | None:
    optimizer = trace.description.optimizer or OptimizerDescription("")
    rms = _gradient_rms(trace)
    epsilon = optimizer.setting("epsilon")
    if epsilon is not None and epsilon <= NO_EPSILON and broken and optimizer.name != "Adafactor":
        return f"epsilon={rounded(epsilon)} leaves a division by 0 where a gradient is 0", epsilon, 1e-7, 0.9
    if epsilon is not None and rms and epsilon > EPSILON_OVER_GRADIENT * rms and not broken:
        return (
            f"epsilon={rounded(epsilon)} is {rounded(epsilon / rms)} times the size of a gradient's entries, "
            f"{rounded(rms)}: it dominates the division and makes every step tiny",
            epsilon,
            rms,
            0.85,
        )
    for name in BOUNDS:
        bound, norm = optimizer.setting(name), middle(trace.gradient_norm)
        left = bound / norm * rms if bound is not None and rms and norm > 0 else 0.0  # size of an entry after clipping
        divides = optimizer.adaptive and left > EPSILON_OVER_GRADIENT * (epsilon or 0.0)  # it restores the size
        if bound is not None and norm > 0 and bound < TINY_CLIP * norm and not broken and not divides:
            return (
                f"{name}={rounded(bound)} clips gradients of norm {rounded(norm)}: next to nothing is left",
                bound,
                norm,
                0.85,
            )
    if not broken and (slowed := _slowed(trace, optimizer)) is not None:
        return slowed
    decay, rate = optimizer.setting("weight_decay"), optimizer.learning_rate
    if decay and rate and decay * rate > MAX_DECAYED_SHARE:
        return (
            f"weight_decay={rounded(decay)} removes {rounded(100 * decay * rate)}% of the weights at each step",
            decay,
            0.01,
            0.85,
        )
    return None


def _slowed(trace: Trace, optimizer: OptimizerDescription) -> Said | None:
    """Return the setting that leaves next to nothing of each step, or makes none for longer than an epoch."""
    start = optimizer.setting("initial_accumulator_value")
    if start is not None and start > LARGE_ACCUMULATOR:
        return (
            f"initial_accumulator_value={rounded(start)} divides every step by {rounded(start**0.5)} from the "
            "start, and Adagrad never forgets what it has accumulated",
            start,
            0.1,
            0.85,
        )
    waits, data = optimizer.setting("gradient_accumulation_steps"), trace.probes.data or DataReading()
    size, samples = trace.description.batch_size, data.samples
    if waits and size and samples and data.complete and waits > max(1.0, samples / size):
        return (
            f"gradient_accumulation_steps={rounded(waits)} is more than the {rounded(samples / size)} batches of "
            "an epoch: no weight changes for that long",
            waits,
            samples / size,
            0.9,
        )
    every, momentum = optimizer.setting("ema_overwrite_frequency"), optimizer.setting("ema_momentum")
    if optimizer.settings.get("use_ema") and every and momentum is not None and every * (1.0 - momentum) < FORGETS_MOST:
        return (
            f"ema_overwrite_frequency={rounded(every)} overwrites the weights with their average before it has "
            f"followed them: with ema_momentum={rounded(momentum)} about {rounded(100 * every * (1 - momentum))}% "
            "of each step is left",
            every,
            1.0 / (1.0 - momentum),
            0.9,
        )
    return None


def _norm_before_the_break(trace: Trace) -> float | None:
    """Return the norm of the gradient whose update broke the weights, if it was of a moderate size."""
    step = (trace.probes.trial or TrialReading()).broken
    norm = float(trace.gradient_norm[step - 1]) if step and step <= len(trace) else np.nan
    return norm if norm < MODERATE_GRADIENT else None


def _gradient_rms(trace: Trace) -> float | None:
    entries = sum(layer.parameters or 0 for layer in layer_descriptions(trace))
    norm = middle(trace.gradient_norm)
    return norm / entries**0.5 if entries and norm > 0 else None


def _bad_memory(trace: Trace) -> Said | None:
    if variation(trace, FRESH_OPTIMIZER) is None or not fixed_by(trace, FRESH_OPTIMIZER):
        return None
    return (
        "the optimizer starts with a state that spoils its steps; with a fresh state the net learns",
        None,
        None,
        0.95,
    )


def _unusual(trace: Trace) -> Said | None:
    """Return the settings without which the net learns."""
    optimizer = trace.description.optimizer or OptimizerDescription("")
    given_its_chance = verdict(trace).unhealthy or saw_all(trace)  # steps that are gathered, or clipped, take longer
    if not optimizer.unusual or not given_its_chance or not fixed_by(trace, USUAL_OPTIMIZER):
        return None
    given = ", ".join(f"{name}={optimizer.settings.get(name)}" for name in optimizer.unusual)
    end = (variation(trace, USUAL_OPTIMIZER) or VariationResult()).end
    return f"{given} spoils the steps; without it the net learns", end, verdict(trace).end, 0.9


def _at_fault(trace: Trace, blamed: LinearReading | None) -> Said | None:
    """Return the optimizer without which the net learns far more, where no other rate of it does."""
    if blamed is None or blamed.rate is not None:
        return None
    name = trace.description.optimizer.name if trace.description.optimizer is not None else "the optimizer"
    return (
        f"the same net learns far more with Adam at 0.001 than with {name} as it is set, at this rate or another: "
        f"{left_of_error(blamed)}",
        blamed.own,
        blamed.own_linear,
        0.9,
    )


def _bad_slot(trace: Trace) -> Said | None:
    first = ((trace.probes.trial or TrialReading()).autopsy or Autopsy()).first
    if first is not None and first.kind == "weight" and (norm := _norm_before_the_break(trace)) is not None:
        return (
            f"the update made {first.name} {in_words(first.found)} from a gradient of norm {rounded(norm)}: its "
            "divisor was 0 or not finite",
            norm,
            None,
            0.85,
        )
    if first is None or first.kind != "optimizer_slot":
        return None
    return f"the optimizer's state was the first to become non-finite: {first.name} ({first.found})", None, None, 0.8
