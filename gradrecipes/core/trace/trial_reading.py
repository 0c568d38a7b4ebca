"""What a trial showed, its variations, and what is measured only where it went wrong.

A variation is the same steps with one thing changed; `probes/varied/variations.py` changes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradrecipes.core.trace.autopsy import Autopsy
from gradrecipes.core.trace.data_reading import HeldBackReading, LinearReading
from gradrecipes.core.trace.record import Record


@dataclass(frozen=True)
class Variation:
    """Name one change of a trial.

    Args:
        name: In the record.
        label: In a table.
        words: In a sentence, as in "with inputs of mean 0 and standard deviation 1, the loss falls".
        rate: Factor of the learning rate, or None.
    """

    name: str
    label: str
    words: str
    rate: float | None = None


AS_IT_IS = Variation("as_it_is", "unchanged", "once more, over fewer batches")
FINITE_DATA = Variation("finite_data", "bad samples replaced", "without the samples that are not finite or outlying")
SCALED_INPUTS = Variation("scaled_inputs", "inputs scaled", "with inputs of mean 0 and standard deviation 1")
SCALED_TARGETS = Variation("scaled_targets", "targets scaled", "with targets of mean 0 and standard deviation 1")
FITTING_WEIGHTS = Variation(
    "fitting_weights", "initial weights of usual size", "with initial weights of the size that initializers give"
)
ALL_SCALED = Variation(
    "all_scaled", "inputs, targets, weights scaled", "with inputs, targets and initial weights of usual size"
)
FRESH_OPTIMIZER = Variation("fresh_optimizer", "optimizer state reset", "with an optimizer whose state was reset")
LARGER_BATCH_FACTOR = 8
LARGER_BATCH = Variation(
    "larger_batch", f"batches {LARGER_BATCH_FACTOR} times larger", "with batches eight times larger"
)
WARM_UP = Variation(
    "warm_up", "learning rate warmed up", "with a learning rate that rises from 0 over the first half of the steps"
)
UNFROZEN = Variation("unfrozen", "all weights trained", "with all weights trained, the frozen ones too")
UNREGULARIZED = Variation("unregularized", "not regularized", "without dropout, penalties and constraints")
USUAL_OPTIMIZER = Variation(
    "usual_optimizer", "optimizer settings as usual", "with the usual settings of the optimizer"
)
LINEAR_HEAD = Variation("linear_head", "last activation linear", "with a linear last layer")
BALANCED_TERMS = Variation("balanced_terms", "loss terms balanced", "with loss terms that start equally large")
VARIATIONS = {one.name: one for one in tuple(globals().values()) if isinstance(one, Variation)}
_RATE = "rate_"


def at_rate(factor: float) -> Variation:
    """Return the variation that multiplies the learning rate.

    Example:
        >>> at_rate(0.1).label
        'learning rate x 0.1'
    """
    words = f"at {factor:,g} times the learning rate"
    return Variation(f"{_RATE}{factor:g}", f"learning rate x {factor:g}", words, factor)


def variation_of(name: str) -> Variation:
    """Return the variation with a name; one that is not known is called by its name."""
    if name in VARIATIONS:
        return VARIATIONS[name]
    factor = name.removeprefix(_RATE)
    try:
        return at_rate(float(factor)) if name.startswith(_RATE) else Variation(name, name.replace("_", " "), name)
    except ValueError:
        return Variation(name, name.replace("_", " "), name)


@dataclass(frozen=True)
class VariationResult(Record):
    """What the trial did with one thing changed.

    Args:
        start: Median loss of the first pass over its batches; None where it broke.
        end: Median loss of the last pass; None where it broke.
        fall: (start - end) / |start|; None where it broke.
        broken: Step at which it broke, or None.
        over_baseline: `end` over the loss of the best constant prediction; None where that is not known.
        steps: How many were run; None in older records. What fixes the trial is run for twice as many.
        outputs_learned: How many outputs ended below their own baseline; None where that was not measured.
        excess: `end` minus the loss of the best constant prediction, for a loss of the user's own to which that was
            fitted; else None.
    """

    start: float | None = None
    end: float | None = None
    fall: float | None = None
    broken: int | None = None
    over_baseline: float | None = None
    steps: int | None = None
    outputs_learned: int | None = None
    excess: float | None = None


@dataclass(frozen=True)
class OutputTrial(Record):
    """How one of several outputs did in the trial.

    Args:
        output: Position among the flattened outputs.
        name: Name of the output.
        start: Mean loss of this output over the trial's batches before the first step.
        end: The same after the last step.
        baseline: Loss of the best constant prediction; None where it is not known.
        noise: Standard error of `end` over the batches.
    """

    output: int
    name: str
    start: float | None = None
    end: float | None = None
    baseline: float | None = None
    noise: float = 0.0

    @property
    def learned(self) -> bool:
        """Whether it ends below the baseline beyond its noise; without a baseline, below its own start."""
        against = self.start if self.baseline is None else self.baseline
        if against is None or self.end is None:
            return True  # not measured
        return self.end < against - 2.0 * self.noise


@dataclass(frozen=True)
class PlannedRates(Record):
    """The learning rates of a whole training, beside those of the trial.

    Args:
        steps: Steps that were read: those planned, or those that the schedule names; None where neither is known.
        planned: Whether these are the steps that the caller plans.
        trial_lowest: Lowest rate within the trial.
        trial_highest: Highest rate within the trial.
        highest: Highest rate within `steps`.
        highest_step: First step at which it is read.
        at_highest: What steps at the highest rate did: from the trial's last pass to the last one at the highest rate.
            None where the rate rises no higher than in the trial, or was not tried.
        raised_over: Steps over which the rate was raised from that of the trial to the highest.
        in_full: Whether these are as many steps as the schedule itself takes from there.
        over_step: First step from which on the rate stays below a hundredth of the highest before, or None.
        broken_rate: The rate at which the loss broke on the way, or None.
        held: What the further steps do at the rate that `rate_to_hold` of `probes/optimizer.py` returns, or None.
        unseen: Mean loss of rows held back, after the further steps as they are planned, and at the rate that is held,
            with the standard error of the difference; None where it is not known.
    """

    steps: int | None = None
    planned: bool = False
    trial_lowest: float | None = None
    trial_highest: float | None = None
    highest: float | None = None
    highest_step: int | None = None
    at_highest: VariationResult | None = None
    raised_over: int | None = None
    in_full: bool = False
    broken_rate: float | None = None
    over_step: int | None = None
    held: VariationResult | None = None
    unseen: tuple[float, ...] | None = None


FLOAT32_ROUNDING = 2.0**-22  # relative: two units in the last place


@dataclass(frozen=True)
class AnswersReading(Record):
    """The loss of a step as it is, and where each answer is the mean of its batch, at the end of a trial.

    Args:
        own: Mean loss over the trial's batches.
        constant: The same with equal answers for all samples of a batch.
        noise: Standard error of the difference.
        entries: Of an answer, a sample.
        beside: Places of the terms of the loss that the answers have no part in; empty where it is no sum.
        terms: What each term contributes to the loss.
        held_by: The term without which the answers depend on the inputs, and under which they cease to; else None.
        gain: By how much the loss of equal answers was higher without that term; None where none was found.
        slope: Steepest slope of the loss in an entry of an answer; None where that was not measured.
        lost: Places of the answers, of several that have a target each, that could as well be equal for all samples.
    """

    own: float
    constant: float
    noise: float = 0.0
    entries: int = 0
    beside: tuple[int, ...] = ()
    terms: tuple[float, ...] = ()
    held_by: str | None = None
    gain: float | None = None
    slope: float | None = None
    lost: tuple[int, ...] = ()

    @property
    def depend(self) -> bool:
        """Whether the answers depend on the inputs, and the loss is lower for it beyond its noise."""
        return self.constant - self.own > 2.0 * self.noise

    @property
    def equal(self) -> bool:
        """Whether both losses are the same but for rounding: of answers that differ, the loss is a mean, then."""
        return abs(self.constant - self.own) <= FLOAT32_ROUNDING * abs(self.own)


NO_GRADIENT, NOT_UPDATED, UNTRACKED, FROZEN = "no_gradient", "not_updated", "untracked", "frozen"
CUT_OFF = "cut_off"


@dataclass(frozen=True)
class StillLayer(Record):
    """A layer whose weights no step of the trial changed, although the answers depend on them.

    Args:
        name: Name of the layer; of an untracked weight what is known of it.
        entries: Of these weights.
        why: `NO_GRADIENT`: the step asks for their gradient, and there is none. `NOT_UPDATED`: a train step of the
            user's own does not ask. `UNTRACKED`: they are variables that belong to no layer of the model. `FROZEN`:
            they are not to be trained, and the step asks for the gradients of no weight in one of its turns. `CUT_OFF`:
            no slope of the answers reaches them, nor the inputs; another term of the loss may move them.
    """

    name: str
    entries: int = 0
    why: str = NO_GRADIENT


@dataclass(frozen=True)
class TrialReading(Record):
    """A short trial with the user's own optimizer and batches.

    Args:
        steps: How many were run.
        batches: How many batches they went over, again and again.
        constant_baseline_loss: Loss of the best constant prediction; None where it is not known.
        broken: Step at which it broke, or None.
        broken_batch: Index of the batch of that step, or None.
        autopsy: Of the step that broke, or None.
        logs: What the train step returned at each step, by name.
        seconds: How long it took.
        variations: What the trial did with one thing changed, by the name of the variation.
        outputs: Each of several outputs, or the only one of a model whose layers add to the loss; empty for others.
        penalties: What layers add to the loss, before the first step and after the last one; None where nothing.
        pairs_samples: False where the loss of a user's train step does not depend on which target belongs to which
            sample; None where that is no question.
        further: How each output did where the steps went on, or the loss of the only one; empty where they did not.
        further_steps: How many steps these were, after those of the trial.
        further_broken: Step at which these broke, counted from the first one of the trial, or None.
        later: What the train step returned in the last pass of further steps, the median by name; empty where none of
            its parts seemed lost.
        weight_penalties: Names of what the train step returns that depends on the weights alone.
        rates: The learning rates of the training that is planned; None where the optimizer has no single rate.
        sample_spread: How far the answers to the samples of a batch differ at the end, as `OutputReading.sample_spread`
            has it; None where it cannot be had.
        answers: The loss beside that of equal answers, after all steps; None where the best constant prediction is
            known, or this could not be measured.
        still: Layers with weights that the answers depend on, and that no step changed.
        moving_target: Whether the loss compares the net with what is computed from weights and held fixed, as that of
            Q-learning does: it may rise while the net learns.
        cut_off: Terms of a loss that are made with the weights it is differentiated in, and that no slope leads from to
            these.
        linear: What a linear function of the inputs learns of each target, where the trial does not do far better.
        twin: What the same net learns with standard settings, where this one learned little.
        held_back: What each output has learned of rows of the trial, and of others, after the further steps.
    """

    steps: int = 0
    batches: int = 0
    constant_baseline_loss: float | None = None
    broken: int | None = None
    broken_batch: int | None = None
    autopsy: Autopsy | None = None
    logs: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    seconds: float | None = None
    variations: Mapping[str, VariationResult] = field(default_factory=dict)
    outputs: tuple[OutputTrial, ...] = ()
    penalties: tuple[float, ...] | None = None
    pairs_samples: bool | None = None
    further: tuple[OutputTrial, ...] = ()
    further_steps: int = 0
    further_broken: int | None = None
    later: Mapping[str, float] = field(default_factory=dict)
    weight_penalties: tuple[str, ...] = ()
    rates: PlannedRates | None = None
    sample_spread: float | None = None
    answers: AnswersReading | None = None
    still: tuple[StillLayer, ...] = ()
    moving_target: bool = False
    cut_off: tuple[str, ...] = ()
    linear: tuple[LinearReading, ...] = ()
    twin: LinearReading | None = None
    held_back: tuple[HeldBackReading, ...] = ()


@dataclass(frozen=True)
class Sharpness:
    """Hold the curvature of the loss, and whether the learning rate fits it.

    Args:
        lambda_max: Largest eigenvalue of the loss's Hessian (of the preconditioned one, where `preconditioned`);
            None where it could not be had.
        lambda_min: Smallest one found, less exactly.
        limit: Largest eigenvalue at which the optimizer is stable at its rate; None where no such limit is known.
        learning_rate: The rate that was judged, or None where there is no single one.
        iterations: Hessian-vector products that were taken.
        converged: Whether `lambda_max` converged to a hundredth; it is a lower bound otherwise.
        preconditioned: Whether the optimizer divides by the size of past gradients, so that this was done here too.
        preconditioner: "state" of the optimizer, or "gradients" of some batches where it had none yet.
        method: "double_backprop", or "finite_difference" where a layer has no second derivative.
        formula: The limit in words.
        reason: Why something is missing, in a sentence.

    Example:
        >>> print(Sharpness(lambda_max=28.0, limit=2.0, learning_rate=1.0, converged=True, formula="2 / rate"))
        The curvature of the loss is 14 times the stability limit of the optimizer at a learning rate of 1: lambda_max \
is 28, the limit 2 (2 / rate). Below a rate of 0.071 its steps do not grow.
    """

    lambda_max: float | None = None
    lambda_min: float | None = None
    limit: float | None = None
    learning_rate: float | None = None
    iterations: int = 0
    converged: bool = False
    preconditioned: bool = False
    preconditioner: str | None = None
    method: str | None = None
    formula: str = ""
    reason: str | None = None

    @property
    def ratio(self) -> float | None:
        """lambda_max over the limit: above 1 the steps along that direction grow; None where either is missing."""
        if self.lambda_max is None or self.limit is None:
            return None
        return self.lambda_max / self.limit if math.isfinite(self.limit) else 0.0

    @property
    def highest_learning_rate(self) -> float | None:
        """The rate at which the steps would just not grow; None where the curvature sets none."""
        if not self.ratio or self.ratio <= 0 or not self.learning_rate:
            return None
        return self.learning_rate / self.ratio

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not finite is None."""
        found = {name: _plain(value) for name, value in vars(self).items()}
        return {**found, "ratio": _plain(self.ratio), "highest_learning_rate": _plain(self.highest_learning_rate)}

    def __str__(self) -> str:
        if self.lambda_max is None:
            return f"The curvature of the loss could not be had. {self.reason or ''}".strip()
        size = f"lambda_max is {self.lambda_max:.3g}" + ("" if self.converged else " or more")
        if self.preconditioned:
            size += " after the optimizer's scaling"
            size += ", guessed from first gradients" if self.preconditioner == "gradients" else ""
        if self.ratio is None:
            return f"{size[0].upper()}{size[1:]}. {self.reason or ''}".strip()
        limit = f"{size}, the limit {self.limit:.3g} ({self.formula})"
        if self.ratio > 1:
            return (
                f"The curvature of the loss is {self.ratio:.3g} times the stability limit of the optimizer at a "
                f"learning rate of {self.learning_rate:.3g}: {limit}. Below a rate of "
                f"{self.highest_learning_rate:.2g} its steps do not grow."
            )
        return f"The learning rate of {self.learning_rate:.3g} fits the curvature of the loss: {limit}."


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
