"""What a rescue came to: the repaired model, what was changed, and the trials that prove it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import keras

from gradrecipes.core.trace.record import dumps, plain
from gradrecipes.diagnosis.judgement import HEALTHY
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Changes
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.edits import Scaling
from gradrecipes.rescue.flaws import Flaws
from gradrecipes.rescue.lab import Proof, Trial
from gradrecipes.rescue.original import Setup

NOTHING_NEEDED, RESCUED, NOT_RESCUED, UNDECIDED = "nothing needed", "rescued", "not rescued", "undecided"
FORMAT, VERSION = "gradrecipes.rescue", 1


@dataclass(frozen=True)
class AdvisedChange:
    """One change of the answer.

    Args:
        name: Short name, such as `"rate_0.1"`.
        title: What to do, in the imperative.
        needed: By how much the score falls without it, measured; None where the search was stopped before.
    """

    name: str
    title: str
    needed: float | None


@dataclass(frozen=True)
class RescueEvidence:
    """What the answer rests on.

    Args:
        measured: What the scores are, in words.
        baseline_score: Score of the best constant prediction.
        proof: The paired comparison, or None.
        trials: Every trial, in order.
        control: Score of the training as it is.
        training_steps: Steps of the user's own training.
        spent_steps: Steps of all trials, in batches of the user's size.
        seconds: Wall time by part.
        costs: Trainings of the user's that each part cost, by training steps.
        final: Score that the changed training ends with; None where that is not known.
        final_share: Share of the user's training after which that was measured: 1, or less where it had settled.
        complete: False where the search was interrupted, or the budget ended it.
        data_complete: False where a dataset was too large to be read whole.
        own_loss: Loss of the training as it is, on rows that it is trained on; None where it was not measured.
        baseline_loss: Loss of the best constant prediction on these rows, or None.
    """

    measured: str
    baseline_score: float
    proof: Proof | None
    trials: tuple[Trial, ...]
    control: float | None
    training_steps: int
    spent_steps: float
    seconds: dict[str, float]
    costs: dict[str, float]
    final: float | None = None
    final_share: float | None = None
    complete: bool = True
    data_complete: bool = True
    own_loss: float | None = None
    baseline_loss: float | None = None

    @property
    def trainings(self) -> float:
        """Cost of all trials, in trainings of the user's."""
        return self.spent_steps / max(1, self.training_steps)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        changes: The winner; empty where nothing is needed or nothing wins.
        proof: Of the winner, or None.
        final: The winner at the end of the user's training, or where it had settled; None where that is not known.
        needed: By how much the score falls without each change of the winner, by name.
        control: The training as it is, as far as it was trained.
        fails: Whether the training as it is fails: breaks, does not learn, or gets worse late.
        complete: False where the search was interrupted, or the budget ended it.
        learned: Whether the training as it is was seen to learn.
        breaks: Whether it raises an error, ends with a loss that is not finite, or gets worse late.
        baseline_loss: Of the best constant prediction on rows of the training data; None where it does not compare.
    """

    changes: Changes
    proof: Proof | None
    final: Result | None
    needed: dict[str, float]
    control: Result | None
    fails: bool
    complete: bool = True
    learned: bool = False
    breaks: bool = False
    baseline_loss: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Rescue:
    """Hold a repaired training that was tried before it is advised.

    Args:
        verdict: `"rescued"`; `"nothing needed"` for a training that was seen to learn, and that nothing tried beats;
            `"not rescued"` for one that fails; `"undecided"` where neither a cause nor a failure nor learning was seen,
            or the search was stopped before that could be told.
        changes: What was changed, the smallest set that wins.
        evidence: The trials.
        diagnosis: What was found wrong.
        before: The user's setup.
        after: The repaired setup; the same where nothing was changed.
        titles: What each change that could be tried does, by its short name.

    Attributes:
        model: A new compiled, untrained model with the changes. It takes and gives the user's own units. The user's
            own model, as it was, where nothing was changed.
        fit_arguments: What `model.fit` needs besides data and epochs: `batch_size` of arrays, `callbacks`.
    """

    verdict: str
    changes: tuple[AdvisedChange, ...]
    evidence: RescueEvidence
    diagnosis: Diagnosis
    before: Setup
    after: Setup
    _user_model: keras.Model = field(repr=False)
    _build: Callable[[int], keras.Model] = field(repr=False)
    _arrays: bool = True
    _scaling: Scaling | None = field(default=None, repr=False)
    titles: Mapping[str, str] = field(default_factory=dict, repr=False)
    _flaws: Flaws | None = field(default=None, repr=False)
    _held: dict[str, keras.Model] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> keras.Model:
        """The repaired model, built when it is first asked for."""
        if "model" not in self._held:
            self._held["model"] = self._user_model if not self.changes else self.build()
        return self._held["model"]

    def build(self, *, seed: int = 0) -> keras.Model:
        """Return another new model with the changes.

        Args:
            seed: 0 for the weights of `model`; another draws anew what is neither frozen nor pretrained.
        """
        return self._build(seed)

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """Arguments of `fit`; callbacks are new ones each time."""
        arguments: dict[str, Any] = {"batch_size": self.after.batch_size} if self._arrays else {}
        if self.after.class_weights:
            arguments["class_weight"] = self.after.class_weight
        if self.after.guard:
            from gradrecipes.callbacks.gradient_guard import GradientGuard

            arguments["callbacks"] = [GradientGuard()]
        return arguments

    def as_code(self) -> str:
        """Return the changes as Keras lines to paste into the script; empty where there are none."""
        if not self.changes:
            return ""
        known = {"arrays": self._arrays, "models": (self._user_model, self.model), "flaws": self._flaws}
        return code_of(self.before, self.after, self._scaling, **known)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return plain(
            {
                "format": FORMAT,
                "version": VERSION,
                "verdict": self.verdict,
                "changes": [vars(change) for change in self.changes],
                "difference": [one.to_json() for one in self.before.diff(self.after)],
                "setup": self.after.to_json(),
                "code": self.as_code(),
                "evidence": _evidence(self.evidence),
                "diagnosis": {
                    "verdict": self.diagnosis.verdict,
                    "findings": [finding.to_dict() for finding in self.diagnosis.findings],
                },
            }
        )

    def to_json(self) -> str:
        """Return `to_dict` as strict JSON text."""
        return dumps(self.to_dict())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the answer as one HTML page without scripts or links."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(self), encoding="utf-8")

    def __str__(self) -> str:
        return screen(self)

    __repr__ = __str__


def _evidence(evidence: RescueEvidence) -> dict[str, Any]:
    proof = evidence.proof
    told = {**vars(evidence), "trials": [vars(trial) for trial in evidence.trials], "trainings": evidence.trainings}
    if proof is not None:
        interval = None if proof.interval is None else [proof.interval.low, proof.interval.high]
        told["proof"] = {**vars(proof), "interval": interval, "difference": proof.difference, "wins": proof.wins}
    return told


LINES, COLUMNS = 40, 80
TRIED_SHOWN = 6  # other trials that are listed
COPY_FAILS = "A copy of the model raised an error, though the model itself trains"
NONE_TRIED = "No change could be tried within this model."
NEITHER = (
    "The diagnosis found nothing wrong, but the training was not seen to learn either. The targets may not follow from "
    "the inputs, or the training is too short."
)
UNTRIED = (
    "Nothing that could be tried within this model acts on what was found. Its loss falls, but a loss of its own does "
    "not say how far it could fall."
)
STOPPED = (
    "Stopped, or out of budget, before a change was confirmed with other seeds and to the end of the training. With a "
    "journal, the next call goes on from here."
)
CODE_LINES = 16


def screen(rescue: Any) -> str:
    """Return a `Rescue` as plain text."""
    evidence = rescue.evidence
    lines = [rescue.verdict.upper() + ("" if evidence.complete else " (stopped early)"), ""]
    error = next((trial.error for trial in evidence.trials if not trial.changes and trial.error), "")
    if rescue.diagnosis.findings:
        first = rescue.diagnosis.findings[0]
        lines += _wrapped(f"Found: {first.title} ({first.code})")
    else:
        lines += _wrapped("The diagnosis found nothing wrong.")
    if evidence.control is not None:
        lines += _wrapped(
            f"As it is: {evidence.measured} {evidence.control:.3f}{_how_far(evidence)} "
            f"(a constant prediction: {evidence.baseline_score:.3f})."
        )
    own, baseline = evidence.own_loss, evidence.baseline_loss
    if own is not None and baseline is not None and own > baseline:
        lines += _wrapped(f"Its own loss ends at {own:.3g}; that of a constant prediction is {baseline:.3g}.")
    if rescue.changes and evidence.proof is not None:
        lines += _advice(rescue)
    elif rescue.verdict in (NOT_RESCUED, UNDECIDED):
        lines += _trials(rescue, error)
    elif error:
        lines += _wrapped(
            f"The trial of the diagnosis learned, and nothing wrong was found. {COPY_FAILS}, so the whole training was "
            f"not seen: {error}"
        )
    else:
        lines += _wrapped(_why_nothing(rescue))
    cost = f"{len(evidence.trials)} trials, {evidence.spent_steps:.0f} steps = {evidence.trainings:.1f} trainings"
    seconds = sum(evidence.seconds.values())
    parts = ", ".join(f"{part} {value:.0f} s" for part, value in evidence.seconds.items())
    lines += ["", *_wrapped(f"{cost}, {seconds:.0f} s: {parts}.")]
    return "\n".join(lines[:LINES])


def _advice(rescue: Any) -> list[str]:
    evidence, proof = rescue.evidence, rescue.evidence.proof
    lines = ["", "Changes:"]
    for change in rescue.changes:
        loss = "" if change.needed is None else f" (without it {-change.needed:+.3f})"
        lines += _wrapped(f"- {change.title}{loss}")
    pairs = ", ".join(f"{a:.3f} to {b:.3f}" for a, b in zip(proof.control, proof.changed, strict=True))
    at = f"after {proof.steps[0]} of {evidence.training_steps} steps"
    lines += ["", *_wrapped(f"{evidence.measured.capitalize()} on held-back data {at}, seed by seed: {pairs}.")]
    if proof.interval is not None:
        low, high = proof.interval.low, proof.interval.high
        lines += _wrapped(f"Difference {proof.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}.")
    if evidence.final is not None:
        settled = f"After {evidence.final_share:.0%} of the training, where it had settled"
        where = settled if evidence.final_share < 1.0 else "At the end of the whole training"
        lines += _wrapped(f"{where}: {evidence.final:.3f}.")
    code = [part for line in rescue.as_code().splitlines() for part in _wrapped_code(line)]
    more = ["... (as_code() returns, and the HTML page holds, all of it)"] if len(code) > CODE_LINES else []
    return [*lines, "", *code[:CODE_LINES], *more]


def _trials(rescue: Any, error: str) -> list[str]:
    evidence = rescue.evidence
    longest = {trial.changes: trial for trial in sorted(evidence.trials, key=lambda trial: trial.steps)}
    best = sorted((one for one in longest.values() if one.changes), key=lambda one: -one.score)
    words = f"Sets of changes tried: {len(best)}. None wins by more than chance. The best:" if best else NONE_TRIED
    if rescue.verdict == UNDECIDED:
        words = f"{UNTRIED if rescue.diagnosis.findings else NEITHER} {words}".strip()
    if error and not best:
        words = f"{COPY_FAILS}, so nothing was tried: {error}"
    elif not evidence.complete:
        words = STOPPED + (" The best so far:" if best else "")
    lines = ["", *_wrapped(words)]
    for trial in best[:TRIED_SHOWN]:
        named = " + ".join(rescue.titles.get(name, name) for name in trial.changes)
        lines += _wrapped(f"- {named}: {trial.score:.3f} after {trial.steps} steps")
    return lines


def _why_nothing(rescue: Any) -> str:
    evidence = rescue.evidence
    tried = any(trial.changes for trial in evidence.trials)
    words = ", and nothing that was tried is better by more than chance" if tried else ""
    if evidence.control is None or evidence.control > evidence.baseline_score:
        return f"The training as it is learns, to its end{words}. The model is returned as it was."
    seen = _seen_learning(evidence, seen_in_diagnosis=rescue.diagnosis.verdict == HEALTHY)
    return (
        f"The training as it is learns its training data{words}. {seen} That its score on held-back data is no better "
        "than that of a constant prediction is a short training, overfitting or chance in few data, or the score does "
        "not suit the loss. The model is returned as it was."
    )


def _how_far(evidence: RescueEvidence) -> str:
    """Return how far the training as it is was trained, where it was stopped before its end."""
    steps = max((trial.steps for trial in evidence.trials if not trial.changes and not trial.seed), default=0)
    return "" if steps >= evidence.training_steps else f" after {steps} of {evidence.training_steps} steps"


def _seen_learning(evidence: RescueEvidence, *, seen_in_diagnosis: bool) -> str:
    """Return the sentence that says where a training was seen to learn whose score does not show it."""
    own, baseline = evidence.own_loss, evidence.baseline_loss
    logged = [trial.loss for trial in evidence.trials if not trial.changes and not trial.seed]
    if own is None or baseline is None or min(own, *logged) >= baseline:
        falls = "Its loss still falls when it ends, so more epochs may be all that it needs."
        return "It was seen to learn in the trial of the diagnosis." if seen_in_diagnosis else falls
    if own < baseline:
        return f"Its own loss there ends at {own:.3g}; that of a constant prediction is {baseline:.3g}."
    return (
        f"Its loss in training ends at {logged[-1]:.3g}, where a constant prediction has {baseline:.3g}; the moving "
        "averages with which it predicts are still behind."
    )


def _wrapped_code(line: str) -> list[str]:
    """Break a line of code between the arguments of a call, where it can be pasted as it is."""
    indent = f"{line[:1]}     " if line[:2] in ("+ ", "- ") else "    "
    parts = textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return parts or [line]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}pre{background:#f4f4f4;padding:1rem;overflow:auto}"
)


def page(rescue: Any) -> str:
    """Return the page of a `Rescue`."""
    evidence = rescue.evidence
    rows = "".join(
        f"<tr><td>{escape(' + '.join(trial.changes) or 'as it is')}</td><td>{trial.seed}</td><td>{trial.steps}</td>"
        f"<td>{trial.score:.3f}</td><td>{escape(trial.end)}</td></tr>"
        for trial in evidence.trials
    )
    findings = "".join(f"<li>{escape(one.title)} <code>{one.code}</code></li>" for one in rescue.diagnosis.findings)
    code = f"<h2>Changes</h2><pre>{escape(rescue.as_code())}</pre>" if rescue.changes else ""
    cost = "<tr><td>{}</td><td>{:.1f}</td><td>{:.2f}</td></tr>"
    parts = evidence.seconds.items()
    times = "".join(cost.format(escape(part), value, evidence.costs.get(part, 0.0)) for part, value in parts)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Rescue: {rescue.verdict}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(rescue.verdict.capitalize())}</h1>"
        f"<pre>{escape(str(rescue))}</pre>{code}<h2>Diagnosis</h2><ul>{findings or '<li>Nothing found.</li>'}</ul>"
        f"<h2>Trials</h2><p>Score: {escape(evidence.measured)}; of the best constant prediction "
        f"{evidence.baseline_score:.3f}.</p>"
        "<table><tr><th>changes</th><th>seed</th><th>steps</th><th>score</th><th></th></tr>"
        f"{rows}</table><h2>Cost</h2><table><tr><th>part</th><th>seconds</th><th>trainings</th></tr>{times}</table>"
        "</body></html>"
    )
