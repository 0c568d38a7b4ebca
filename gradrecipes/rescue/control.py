"""Judge trainings: whether the one as it is fails, or only seems to learn, and whether a changed one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Changes, setup_after
from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.feed import FEW_SAMPLES
from gradrecipes.rescue.lab import LEAST_DIFFERENCE, LEAST_GAIN, STANDARD_ERRORS, Lab
from gradrecipes.rescue.task import OWN_LOSS

HALF = 0.5  # share of the training at which one is compared with others that are to be trained to the end
QUARTER = 0.25  # share of the training at which one beside a cause ends that stands still
WITHIN = 0.05  # of what the best gains over a constant prediction: fewer changes that lose no more are enough
EXCELLENT = 1.0 - WITHIN  # score from which on a better one is not looked for
HALF_LEARNED = 0.5  # share of the way from a constant prediction to a perfect score
FAR_BELOW = 0.5  # gain over a constant prediction over that of a short trial below which a training does not do
FEWEST_STEPS = 40  # of a training whose losses say whether they still fall: ten in each quarter
HALVED = 4  # changes from which on a half is left out before single ones
FINAL_PEAK = 10.0  # highest loss over the first from which on a run that ends well is said to have spiked


class Control:
    """Train the user's own setup, and say how it does.

    Args:
        lab: Trains the arms.
        seen_to_learn: Whether the trial of the diagnosis learned, with nothing wrong found.

    Attributes:
        checkpoints: Its results, ever later ones.
        fails: Whether it breaks, does not learn, or gets worse late.
        doubtful: Whether it learns by its score, but not by its own loss.
        breaks: Whether it raises an error, ends with a loss that is not finite, or gets worse late.
        baseline: Own loss of the best constant prediction; None where its own loss cannot be compared with that.
        paused: Whether it stopped half-way, where it learns and nothing speaks for a late failure.
        learned: Whether it was seen to learn: by its score, by its own loss, in the diagnosis, or, where no cause was
            found, by a loss that still falls when the training ends, or fell where no constant prediction is known.
    """

    def __init__(self, lab: Lab, *, seen_to_learn: bool = False):
        self.lab = lab
        self.checkpoints: list[Result] = []
        self.fails = self.doubtful = self.breaks = self.learned = self.paused = False
        self.baseline: float | None = None
        self._seen_to_learn = seen_to_learn

    @property
    def last(self) -> Result | None:
        """What it came to, as far as it was trained."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def learned_early(self) -> bool:
        """Whether it learned before its last checkpoint."""
        return any(self.lab.learns(one) for one in self.checkpoints[:-1])

    @property
    def fails_late(self) -> bool:
        """Whether it fails after it had learned for longer than the shortest trials, which do not show that."""
        return self.fails and any(self.lab.learns(one) for one in self.checkpoints[1:-1])

    def train(self, *shares: float, stoppable: bool, until: float = QUARTER, pausable: bool = False) -> None:
        """Train to the end, but no further than it is broken or, where a cause was found, stands still.

        Args:
            shares: Of the training, after which it is scored, too.
            stoppable: Whether a cause was found.
            until: Share of the training before which no standing still ends it.
            pausable: Whether it may stop half-way, until the others are known that it is compared with.
        """
        self.paused = False
        for share in sorted({*shares, *([max(*shares, until)] if stoppable else []), HALF, 1.0}):
            if self.checkpoints and share * self.lab.full <= self.checkpoints[-1].steps:
                continue
            self.checkpoints.append(self.lab.run((), share=share, part="control"))
            if self.checkpoints[-1].error or self.checkpoints[-1].broken is not None:
                break
            if stoppable and share >= until and self._stands_still():
                break
            self.paused = pausable and share == HALF and self._may_pause()
            if self.paused:
                break
        last = self.checkpoints[-1]
        if self.baseline is None and self.lab.baseline_loss and math.isfinite(last.fit):
            self.baseline = self.lab.baseline_loss()
        gained = 0.0 if self.baseline is None else self.baseline - last.fit
        least = LEAST_GAIN * abs(self.baseline or 0.0)
        below = self._is_below_baseline(last)
        # Where the score misreads an unusual loss, or a net learns its few samples by heart, a rescue repairs nothing.
        fits = gained > least or (self._seen_to_learn and below)
        self.breaks = self._breaks(beside_a_cause=stoppable)
        self.fails = self._fails(1.0 if stoppable else 0.0) and (stoppable or not fits)
        # A score of classes sees only which one is the largest: it may be above its baseline beside a loss that is not.
        self.doubtful = self.lab.feed.sample_weight is None and -gained > least
        self.doubtful = self.doubtful and not (stoppable or self.fails or below)
        seen = below or self._seen_to_learn or self._is_above_chance(last, beside_a_cause=stoppable)
        seen = seen or (not stoppable and self._falls(last))
        self.learned = seen and not (self.breaks and self.fails)

    def _may_pause(self) -> bool:
        """Return whether it learns half-way, at a constant rate, and its loss neither rises nor spikes."""
        early, last = self.checkpoints[-2:] if len(self.checkpoints) > 1 else (self.checkpoints[-1],) * 2
        known = self.lab.base.schedule is None and self.lab.base.optimizer != OWN and last.steps >= FEWEST_STEPS
        return known and early is not last and last.steady and self.lab.learns(last) and not self.climbs(early, last)

    def cannot_reach(self, other: Result) -> bool:
        """Return whether another that was trained half-way is ahead of what it can end with."""
        early, last = self.checkpoints[-2:]
        gain = _gain_of_doubling(early, last, last.steps / early.steps)
        proof = self.lab.proof([(last, other)])
        return proof.wins and proof.difference - max(0.0, gain) > max(proof.least, STANDARD_ERRORS * proof.error)

    def _is_below_baseline(self, last: Result) -> bool:
        """Return whether the own loss is below that of the best constant prediction by more than chance.

        The constant is fitted to the same rows, so any gain is one by the inputs. A direction that has nothing to do
        with the targets explains a share of 1 / rows of them by chance, and up to four times as much, at two standard
        errors. The loss of the training steps counts, too: what is normalized by statistics of the batch may learn
        while the moving averages, which predict, are still far behind.
        """
        if self.baseline is None:
            return False
        feed, rows = self.lab.feed, max(1, min(FEW_SAMPLES, self.lab.feed.samples))
        least = max(LEAST_DIFFERENCE, STANDARD_ERRORS**2 / rows) * abs(self.baseline)
        error = math.sqrt(2.0) * STANDARD_ERRORS * last.loss_error  # that of the baseline is of the same order
        logged = feed.sample_weight is None and self.baseline - last.loss > max(least, error)
        return self.baseline - last.fit > least or logged

    def at(self, share: float, seed: int = 0) -> Result:
        """Return it after a share of the training, trained further where it was stopped before."""
        result = self.lab.run((), seed=seed, share=share, part="control" if seed == 0 else "other seeds")
        if seed == 0 and result.steps > self.checkpoints[-1].steps:
            self.checkpoints.append(result)
        return result

    def ends_far_below(self, tried: Sequence[Changes], share: float) -> bool:
        """Return whether it ends far below what others reach in a short trial, or half-way: to fall is not all.

        Args:
            tried: The others. None is run where it is known to fail, or learned half of what can be learned: of a loss
                of its own, that says nothing where it fell and stands still. None is run half-way that is not as far
                above it after a short trial.
            share: Of the training that a short trial has.
        """
        lab, ended = self.lab, self.checkpoints[-1]
        own = lab.task.kind == OWN_LOSS
        half = self._gain(ended) >= HALF_LEARNED * (1.0 - lab.task.baseline_score)
        if self.fails or ended.error or (own and not lab.minimized):
            return False
        if half and not (own and not (ended.falls or ended.declines)):
            return False
        for changes in tried:
            for length in (share, HALF):
                one = lab.run(changes, share=length, part="short trials")
                if self._is_far_above(one, ended):
                    return True
                if not self._is_far_above(one, self.at(length)):
                    break
        return False

    def _is_far_above(self, one: Result, other: Result) -> bool:
        if not self.lab.learns(one) or not self.lab.better(one.score, other.score):
            return False
        far = self._gain(other) < FAR_BELOW * self._gain(one)
        less = 1.0 - one.score.value < FAR_BELOW * (1.0 - other.score.value)  # is left of a loss
        return far or (less and self.lab.task.kind == OWN_LOSS)

    def _gain(self, result: Result) -> float:
        return result.score.value - self.lab.task.baseline_score

    def _is_above_chance(self, last: Result, *, beside_a_cause: bool) -> bool:
        """Return whether the score shows that it learned, also where the own loss or a cause speaks against it."""
        lab, baseline = self.lab, self.lab.task.baseline_score
        if beside_a_cause and self.baseline is not None and last.score.value - baseline < LEAST_GAIN * (1.0 - baseline):
            return False
        return lab.learns(last, standard_errors=STANDARD_ERRORS if self.doubtful else 1.0)

    def _falls(self, last: Result) -> bool:
        """Return whether the loss still falls, or fell where it cannot be compared with a constant prediction's."""
        fell = last.fell and self.baseline is None
        return last.steps >= FEWEST_STEPS and (last.falls or last.declines or fell)

    def _stands_still(self) -> bool:
        learned = any(self.lab.learns(one, standard_errors=1.0) for one in self.checkpoints)
        own = self.lab.task.kind == OWN_LOSS and len(self.checkpoints) > 1  # one that comes nearer to a constant's
        nearer = own and self.lab.better(self.checkpoints[-1].score, self.checkpoints[-2].score)
        falls = self.checkpoints[-1].falls and not (self.lab.wrong_loss and self.lab.task.kind != OWN_LOSS)
        return not (learned or nearer or falls)

    def _fails(self, standard_errors: float) -> bool:
        """Return whether the training as it is fails; a few samples held back prove that of no training by themselves.

        Args:
            standard_errors: By which its score has to be above the baseline; 0 where the diagnosis found nothing
                either.
        """
        last = self.checkpoints[-1]
        if self.breaks or (self.lab.task.kind == OWN_LOSS and not (self.lab.minimized and _stays(last))):
            return self.breaks
        return not self.lab.learns(last, standard_errors=standard_errors)

    def _breaks(self, *, beside_a_cause: bool) -> bool:
        last = self.checkpoints[-1]
        if last.error or last.broken is not None or not math.isfinite(last.loss):
            return True
        if self.lab.task.kind == OWN_LOSS:  # one that no step minimizes may grow, as that of learned values does
            told = self.lab.minimized or beside_a_cause
            return told and last.peak > FINAL_PEAK and last.score.value < -0.5
        # A score that gets worse while the training loss falls on, or stays within its noise, is overfitting.
        worse = [one for one in self.checkpoints[:-1] if self.lab.better(one.score, last.score)]
        return any(self.climbs(one, last) for one in worse)

    @staticmethod
    def climbs(one: Result, other: Result) -> bool:
        """Return whether the training loss rises from one checkpoint to another, by more than its batches differ."""
        noise = STANDARD_ERRORS * math.hypot(one.loss_error, other.loss_error)
        return not other.loss - one.loss <= noise


class Ends:
    """Train changed setups on to the end of the user's training, no further than it takes to know how they end.

    Args:
        lab: Trains the arms.
        control: The training as it is.
        long: Share of the training that the longer trials have.

    Attributes:
        of: By changes, what they end with: of what has settled half-way, what it has there.
        to_last_step: Whether what is changed fails late, so that no half says how it ends.
    """

    def __init__(self, lab: Lab, control: Control, long: float):
        self.lab, self.control, self.long = lab, control, long
        self.of: dict[Changes, Result] = {}
        self.to_last_step = False

    def score(self, changes: Changes) -> float:
        """Return the score that changes end with."""
        return self.of[changes].score.value

    def half_learned(self, result: Result) -> bool:
        """Return whether half of what can be learned was learned."""
        baseline = self.lab.task.baseline_score
        return self.lab.learns(result) and result.score.value >= baseline + HALF_LEARNED * (1.0 - baseline)

    def holds(self, changes: Changes, *, beside: Sequence[Changes] = (), ahead: Changes = ()) -> bool:
        """Return whether changes learn to the end of the user's training, and do not get worse on the way.

        Args:
            changes: To train.
            beside: Others; what one of them beats half-way is not trained to the end.
            ahead: Those that learned fastest; what cannot get where they are half-way is not trained to the end.
        """
        lab = self.lab
        half, *others = map(self._half, (changes, *beside))
        beaten = any(lab.better(one.score, half.score) for one in others)
        stands_still = not (half.falls or lab.learns(half, standard_errors=1.0))
        if beaten or stands_still or half.error or half.broken is not None:
            return False
        if ahead and not self.keeps_up(changes, half, ahead):
            return False
        last = half if self._is_settled(changes, half) else lab.run(changes, part="finals")
        if last.error or last.broken is not None:
            return False
        self.of[changes] = last
        way = [lab.run(changes, share=self.long, part="finals")] if lab.has_run(changes, self.long) else []
        worse = any(map(self._is_lost, [*way, half], [*way[1:], half, last]))
        return lab.learns(last, standard_errors=1.0) and not worse

    def keeps_up(self, changes: Changes, result: Result, fastest: Changes) -> bool:
        """Return whether changes end where the fastest are half-way, if they gain on as fast as they did until then."""
        lab, value = self.lab, result.score.value
        paid = lab.has_run(fastest, HALF) or lab.left >= HALF * lab.full
        if changes == fastest or value >= EXCELLENT or not paid:
            return True
        one, other = (lab.run(some, share=self.long, part="finals") for some in (changes, fastest))
        if not lab.better(other.score, one.score):  # it was not behind
            return True
        half = self._half(fastest)
        if result.steps < lab.full:
            value += max(0.0, value - one.score.value) * (1.0 - HALF) / (HALF - self.long)
        behind = half.score.value - value > WITHIN * (half.score.value - lab.task.baseline_score)
        return not (behind and lab.better(half.score, result.score))

    def _half(self, changes: Changes) -> Result:
        if not self.lab.has_run(changes, HALF):  # what it has before tells whether it still gains
            self.lab.run(changes, share=max(QUARTER, self.long), part="finals")
        return self.lab.run(changes, share=HALF, part="finals")

    def _is_settled(self, changes: Changes, half: Result) -> bool:
        """Return whether the second half of a training is known to add less than 5%, and not to break.

        A training may break late whose rate rises, which a step has thrown back to where it began, or whose loss is
        the user's own and not finite for answers that are sure.
        """
        lab = self.lab
        early = next((share for share in (max(QUARTER, self.long), self.long) if lab.has_run(changes, share)), HALF)
        setup = setup_after(lab.base, changes)
        unknown = setup.schedule is not None or setup.optimizer == OWN or lab.task.kind == OWN_LOSS
        unknown = unknown or (lab.task.own is not None and not lab.task.exchanged(setup))
        few = half.steps < FEWEST_STEPS or early == HALF or not half.steady
        if self.to_last_step or self.control.fails_late or unknown or few or not self.half_learned(half):
            return False
        before = lab.run(changes, share=early, part="finals")
        gain = _gain_of_doubling(before, half, HALF / early)
        flat = gain <= WITHIN * (half.score.value - lab.task.baseline_score) or half.score.value >= EXCELLENT
        return flat and not (self._is_lost(before, half) or self.control.climbs(before, half))

    def _is_lost(self, one: Result, later: Result) -> bool:
        """Return whether much of what was learned is lost at a later step: another seed may end just there."""
        gained = one.score.value - self.lab.task.baseline_score
        return one.score.value - later.score.value > LEAST_GAIN * gained and self.lab.better(one.score, later.score)


def _gain_of_doubling(one: Result, later: Result, ratio: float) -> float:
    """Return by how much a score rises at most while the steps double, after two results with that ratio of steps.

    Learning curves are concave in the logarithm of the steps: the last doubling gains no more than the one before.
    """
    return (later.score.value - one.score.value) * math.log(1.0 / HALF) / math.log(ratio)


def _stays(result: Result) -> bool:
    """Return whether the training loss neither fell nor still falls."""
    return not (result.fell or result.falls or result.declines)


def left_out_next(changes: Changes, measured: dict[Changes, tuple[Changes, float]]) -> list[Changes]:
    """Return what is to be left out next: halves of many, single changes, and those measured in a larger set."""
    ordered = sorted(changes, key=lambda change: -change.risk)
    half = len(ordered) // 2
    halves = [tuple(ordered[:half]), tuple(ordered[half:])] if len(ordered) >= HALVED else []
    singles = [(one,) for one in ordered]
    fresh = [part for part in (*halves, *singles) if part not in measured]
    return fresh or [part for part in singles if measured[part][0] != changes]
