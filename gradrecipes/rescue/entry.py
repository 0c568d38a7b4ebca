"""From a failing training to one that works: diagnose, search by trials, and hand back the proven model."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import has_own_train_step
from gradrecipes.compat.random_state import global_tensorflow_seed_kept, random_numbers_kept, seed_all
from gradrecipes.core.arguments import require_whole
from gradrecipes.core.findings import Severity
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.judgement import HEALTHY, UNHEALTHY
from gradrecipes.diagnosis.outcome import fixing_rate
from gradrecipes.probes.examine import examine, require_compiled
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.rescue.arm import Arm
from gradrecipes.rescue.changes import Change, candidates, catalogue, setup_after, suggested_changes
from gradrecipes.rescue.edits import OWN, Scaling, scaling_of
from gradrecipes.rescue.feed import Feed, balanced_weights, is_flat, is_padded, looked_up_inputs, read_feed
from gradrecipes.rescue.flaws import LEFT_OUT, Flaws, few_flawed, flaws_of
from gradrecipes.rescue.inner import calls_itself
from gradrecipes.rescue.lab import Journal, Lab, fingerprint_of
from gradrecipes.rescue.original import Original, Setup, read_original, setup_of
from gradrecipes.rescue.own_loss import (
    LIKELIHOODS,
    OwnLoss,
    constant_loss,
    masks,
    positive_columns,
    sum_of_baselines,
    usual_baseline,
    wants_other_answers,
)
from gradrecipes.rescue.rebuild import rebuild
from gradrecipes.rescue.search import search
from gradrecipes.rescue.task import BINARY, CLASSES, NUMBERS, ONE_HOT, OWN_LOSS, Task, shares_of, task_of
from gradrecipes.rescue.verdict import (
    NOT_RESCUED,
    NOTHING_NEEDED,
    RESCUED,
    UNDECIDED,
    AdvisedChange,
    Found,
    Rescue,
    RescueEvidence,
)
from gradrecipes.training.building import build_on
from gradrecipes.training.trial_data import is_arrays

_LOG = logging.getLogger(__name__)

TRAININGS = 3.0  # of the user's own that a rescue may cost by default
CONFIRMED_IN = 2.0  # trainings that are kept back of the budget, to train what looks good to the end
LOSS_CAUSES = {"loss_output_mismatch", "unsafe_loss", "unbounded_loss"}  # findings that are about the loss itself


def rescue(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int = 32,
    epochs: int,
    validation_data: Any = None,
    seed: int = 0,
    budget: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Rescue:
    """Repair a training that fails: find the smallest set of changes that makes it work, proven by trials.

    Each change is applied to a copy of the model and trained beside the model as it is: the same data in the same
    order, the same seeds. What is advised has won on data held back from training, by more than chance, and each
    change of it is needed. Of a healthy model nothing is changed. The given model, its optimizer, all seeds and
    global settings stay as they were.

    Args:
        model: A compiled model: Sequential and Functional ones are built again with the changes. In a subclassed one,
            and within layers that hold others, no layer is added: the optimizer, the scaling of the data, initial
            weights, activations, dropout, regularizers, precision and callbacks are changed.
        x: What `model.fit` takes: arrays (nested), a `tf.data.Dataset`, a `keras.utils.PyDataset`.
        y: Targets; None where `x` brings them.
        sample_weight: Weights of the samples, or None.
        class_weight: What the samples of each class weigh, as `fit` takes it, or None.
        batch_size: Samples in a batch of arrays.
        epochs: Passes over the data that the training is meant to have.
        validation_data: `(x, y)` or a dataset that decides which training is better; without it a fifth of the data
            is held back.
        seed: Fixes the split, the order of the data and the weights drawn anew.
        budget: Training steps of all trials, in batches of the user's size, which are never exceeded: a trial that
            would is not begun, and the answer is what is proven by then. The diagnosis takes a few hundred steps
            besides. By default as many as three trainings take, and two trainings more in which what looks good by
            then is trained to the end.
        journal: A file in which results are kept; a rescue that was stopped resumes from it.
        tell: Called with a few words when a part or a trial begins, and, when a trial ends, with the same words, a
            colon and its score.

    Returns:
        The verdict, the repaired model, the changes and the evidence.

    Raises:
        TypeError: No Keras model, or data that hold no numbers.
        ValueError: The model is not compiled, a number is out of range, or the data do not belong together.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(100.0), "mse")
        >>> found = rescue(model, x, x.sum(axis=1), epochs=20)
        >>> found.verdict
        'rescued'
    """
    require_compiled(model)
    require_whole("epochs", epochs, least=1, remedy="Pass what you pass to model.fit.")
    require_whole("seed", seed, least=0, remedy="Another seed draws other weights.")
    if budget is not None:
        require_whole("budget", budget, least=1, remedy="Leave it out for three trainings.")
    tell = tell or (lambda words: None)
    began = time.monotonic()
    held: dict[str, Any] = {"validation_data": validation_data, "seed": seed, "trained": few_flawed}
    feed, size = read_feed(x, y, sample_weight=sample_weight, batch_size=batch_size, **held)
    tell("diagnosing")
    case = _read(model, feed, size, epochs=epochs, seed=seed, class_weight=class_weight)
    steps = feed.steps_per_epoch(size) * epochs
    limit = math.ceil((TRAININGS + CONFIRMED_IN) * steps) if budget is None else budget
    lab = Lab(
        case.base,
        case.feed,
        case.task,
        case.build,
        Journal(journal, fingerprint_of(model, feed.x, feed.y, feed.x_val, feed.y_val) if journal else ""),
        max(limit - CONFIRMED_IN * steps, 0.5 * limit),
        tell,
        stages={} if case.original.wrappable else None,
        baseline_loss=None if case.wrong_loss else case.baseline_loss,  # that it falls says nothing then
        limit=limit,
        minimized=not has_own_train_step(model),
        wrong_loss=case.wrong_loss,
        seconds={"diagnosis": time.monotonic() - began},
    )
    known, trace = _changes(case, steps), case.diagnosis.trace
    rate = fixing_rate(trace, lower=False) or fixing_rate(trace, lower=True)
    found = search(
        lab,
        candidates(case.diagnosis.findings, known, rate=rate),
        known,
        healthy=case.nothing_found,
        suggested=suggested_changes(case.diagnosis.findings, known),
        seen_to_learn=case.nothing_found and case.diagnosis.verdict == HEALTHY,
    )
    titles = {name: change.title for name, change in known.items()}
    return _answer(case, lab, found, titles, arrays=is_arrays(x) or isinstance(x, list | tuple | dict))


@dataclass(frozen=True, eq=False)
class _Case:
    """Hold what is known of a training before any change is tried."""

    model: keras.Model
    feed: Feed
    diagnosis: Diagnosis
    original: Original
    base: Setup
    task: Task
    scaling: Scaling
    flaws: Flaws

    def build(self, setup: Setup, drawn: int) -> keras.Model:
        """Return the compiled model of a setup and a seed."""
        return rebuild(self.original, self.base, setup, scaling=self.scaling, seed=drawn)

    @property
    def outputs(self) -> Sequence[OutputDescription]:
        """What is known of the model's outputs."""
        return self.diagnosis.trace.description.outputs

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """Shape of the only output, without samples; None where there are several, or none is known."""
        return self.outputs[0].shape if len(self.outputs) == 1 else None

    @property
    def nothing_found(self) -> bool:
        """Whether the diagnosis gives no cause: an undecided one neither, and the control arm shows what learns."""
        return all(finding.severity is Severity.NOTICE for finding in self.diagnosis.findings)

    @property
    def wrong_loss(self) -> bool:
        """Whether a finding is about the loss itself."""
        return bool(LOSS_CAUSES & {finding.code for finding in self.diagnosis.findings})

    def baseline_loss(self) -> float | None:
        """Return the own loss of the best constant prediction on rows of the training data, or None."""
        outputs, shape = self.outputs, self.shape
        if not outputs or self.feed.y is None:
            return None
        x, y = self.feed.few_rows()
        if len(outputs) > 1:
            return None if masks(self.model) else sum_of_baselines(outputs, keras.tree.flatten(y))
        if not masks(self.model) and (known := usual_baseline(outputs[0], y)) is not None:
            return known
        with random_numbers_kept(), global_tensorflow_seed_kept():
            made = self.build(self.base, 0)
            found = constant_loss(made, x, y, shape) if shape else None
            return None if found is None else found - float(sum(made.losses))


def _read(
    model: keras.Model, feed: Feed, size: int, *, epochs: int, seed: int, class_weight: Mapping[int, float] | None
) -> _Case:
    """Diagnose a training, and read the model, its setup and what it is to learn."""
    with random_numbers_kept(), global_tensorflow_seed_kept():
        seed_all(seed)  # what ran before in the process must not matter
        inputs, targets, weights = feed.as_user_gave(size)
        trace = examine(
            model,
            inputs,
            targets,
            sample_weight=weights,
            class_weight=class_weight,
            batch_size=min(size, feed.samples),
            seed=seed,
            epochs=epochs,
            steps_per_epoch=feed.steps_per_epoch(size),
        )
        diagnosis = Diagnosis(tuple(find(trace)), trace)
        seed_all(seed)
        build_on(model, next(feed.batches(batch_size=size, seed=0, skip=0, count=1)))
        original = read_original(model, keras.tree.map_structure(lambda rows: rows[:2], feed.few_rows()[0]))
        weighed = {str(label): float(weight) for label, weight in (class_weight or {}).items()}
        base = replace(setup_of(model, trace.description, batch_size=size, epochs=epochs), class_weights=weighed)
    outputs = trace.description.outputs
    looked_up = looked_up_inputs(trace)
    with random_numbers_kept(), global_tensorflow_seed_kept():
        flaws = flaws_of(model, feed, outputs, looked_up, {finding.code for finding in diagnosis.findings})
    feed = flaws.taken_out(feed)
    clean = feed.under(LEFT_OUT, OWN)
    flat = has_own_train_step(model) and is_flat(feed.y) and [one.units for one in outputs] == [1]
    task = task_of(clean, base, outputs)
    scaling = scaling_of(*flaws.unmarked(feed.x, feed.y), looked_up, task.numbers)
    case = _Case(model, feed, diagnosis, replace(original, flat=flat), base, task, scaling, flaws)
    if has_own_train_step(model):
        with random_numbers_kept(), global_tensorflow_seed_kept():
            in_call = calls_itself(lambda: case.build(base, 0), feed.take(np.arange(min(2, feed.samples))))
        case = replace(case, original=replace(case.original, in_call=in_call))
    return replace(case, task=_with_reference(case))


def _changes(case: _Case, steps: int) -> dict[str, Change]:
    """Return the changes that may be tried, by name."""
    feed, task = case.feed, case.task
    known = catalogue(
        case.base,
        case.original,
        case.scaling,
        task,
        steps=steps,
        positive=_positive_columns(case),
        in_order=feed.in_order,
        padded=is_padded(feed.x),
        flaws=case.flaws if feed.corrected else None,
        class_weights=balanced_weights(feed.y) if task.kind in (CLASSES, ONE_HOT, BINARY) else None,
    )
    if any(one.custom for one in case.outputs) and not case.wrong_loss:
        known.pop("head_and_loss", None)  # who writes a loss means another one than the targets suggest
    return known


def _answer(case: _Case, lab: Lab, found: Found, titles: dict[str, str], *, arrays: bool) -> Rescue:
    after = setup_after(lab.base, found.changes)
    tried = {name for trial in lab.trials for name in trial.changes}
    helpless = case.diagnosis.verdict == UNHEALTHY or not tried & set(
        suggested_changes(case.diagnosis.findings, titles)
    )
    untried = lab.task.kind == OWN_LOSS and not case.nothing_found and helpless
    final = found.final if found.changes else None
    evidence = RescueEvidence(
        lab.task.measured,
        lab.task.baseline_score,
        found.proof,
        tuple(lab.trials),
        None if found.control is None else found.control.score.value,
        lab.full,
        lab.spent,
        lab.seconds,
        {part: steps / max(1, lab.full) for part, steps in lab.steps.items()},
        None if final is None else final.score.value,
        None if final is None else final.steps / lab.steps_of(after, 1.0),
        found.complete,
        lab.feed.complete,
        None if found.control is None or found.baseline_loss is None else found.control.fit,
        found.baseline_loss,
    )
    changes = tuple(AdvisedChange(one.name, one.title, found.needed.get(one.name)) for one in found.changes)

    def make(seed: int) -> keras.Model:
        with random_numbers_kept(), global_tensorflow_seed_kept():
            keras.utils.set_random_seed(seed)
            return case.build(after, seed)

    return Rescue(
        _verdict(found, case.diagnosis, nothing_found=case.nothing_found, untried=untried),
        changes,
        evidence,
        case.diagnosis,
        lab.base,
        after,
        case.model,
        make,
        arrays,
        case.scaling,
        titles,
        case.flaws,
    )


def _verdict(found: Found, diagnosis: Diagnosis, *, nothing_found: bool, untried: bool = False) -> str:
    """Return the verdict; where neither a cause nor a failure nor learning was seen, that nothing can be said.

    Args:
        found: What the search came to.
        diagnosis: The diagnosis.
        nothing_found: Whether it gives no cause.
        untried: Whether nothing that was tried acts on a cause, and only a loss says how the training does, which may
            fall far and still be far from what another setup reaches.
    """
    if found.changes:
        return RESCUED
    if found.control is not None and found.control.error and nothing_found:  # it is the copy that cannot be trained
        return NOTHING_NEEDED if diagnosis.verdict == HEALTHY else UNDECIDED
    if found.learned:
        return NOTHING_NEEDED if found.complete and not untried else UNDECIDED
    return UNDECIDED if nothing_found and not found.breaks else NOT_RESCUED


def _with_reference(case: _Case) -> Task:
    """Return the task with the loss that scores are measured by: of the best constant prediction, else before training.

    A loss of the user's own may want something else than the targets.
    """
    task, feed, shape = case.task, case.feed, case.shape
    if task.kind != OWN_LOSS and not (shape and case.outputs[0].custom):
        return _with_own_loss(case) if shape and case.base.loss in LIKELIHOODS else task
    with random_numbers_kept(), global_tensorflow_seed_kept():
        try:
            model = case.build(case.base, 0)
            if task.kind != OWN_LOSS:
                numbers = task.kind == NUMBERS
                judged = numbers or task.kind == BINARY
                if not judged or not wants_other_answers(model, task.x, task.y, shape, numbers=numbers):
                    return _with_own_loss(case)
                task = replace(task, kind=OWN_LOSS, baseline_score=0.0)
            loss = task.loss_of(model)
        except Exception:  # a model that cannot be copied, as the control arm will say, or a loss of another output
            return task
        baseline = constant_loss(model, feed.x_val, feed.y_val, shape) if shape and task.y is not None else None
    if baseline is not None:
        return replace(task, reference=baseline, start=loss)
    if not math.isfinite(loss):
        arm = Arm(case.base, 0, build=case.build, feed=feed, task=task)
        loss = arm.train(1).loss  # of the first step, before it updates
    return replace(task, reference=loss)


def _with_own_loss(case: _Case) -> Task:
    """Return the task with the user's own loss, which judges the answers of a model that is trained with another."""
    task, name = case.task, (case.base.loss, case.base.from_logits)
    shares = None if task.kind == NUMBERS else shares_of(task.kind, case.feed.y, case.shape[-1])
    own = OwnLoss(name, lambda: case.build(case.base, 0), task.x, task.y, case.shape, shares)
    return replace(task, own=own)


def _positive_columns(case: _Case) -> tuple[int, ...]:
    """Return the columns of the output that must be positive for the user's own loss, or a likelihood, to be finite."""
    shape, head = case.shape, case.base.head
    if not shape or not (case.outputs[0].custom or case.base.loss in LIKELIHOODS) or not case.original.surgical:
        return ()
    if head not in ("linear", "relu") or case.feed.y is None:
        return ()
    with random_numbers_kept(), global_tensorflow_seed_kept():
        model = case.build(case.base, 0)
        return positive_columns(model, *case.feed.few_rows(), shape, rectified=head == "relu")
