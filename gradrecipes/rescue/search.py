"""Find the smallest set of changes that makes a training work, by paired trials against the training as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradrecipes.core.analysis.intervals import Interval, bootstrap_interval
from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Change, Changes
from gradrecipes.rescue.lab import Lab
from gradrecipes.rescue.task import OWN_LOSS

SEEDS = (0, 1, 2)
SHORTEST_TRIAL = 40  # steps; fewer do not tell a slow start from none
TRIALS_A_TRAINING = 20  # short trials that cost as much as one training
LENGTHENED = 2  # times as long are the trials of the survivors
SURVIVORS = 2
EXPLORED = 0.6  # share of what is left after the final training that the short trials may use
FEWEST_CANDIDATES = 8
FINAL_PEAK = 10.0  # highest loss over the first from which on a run that ends well is said to have spiked
LEAST_GAIN = 0.1  # of the distance between the score as it is and a perfect one
LATE = (
    "constant_rate",
    "plain_optimizer",
    "guard",
    "clip",
    "rate_0.1",
    "warm_up",
    "adam",
)  # against what happens late, the safest first


@dataclass(frozen=True)
class Proof:
    """Say by how much the changed training wins.

    Args:
        control: Score of the training as it is, one a seed.
        changed: Score of the changed training, one a seed.
        steps: Steps at which each pair was compared.
        interval: 95% interval of the mean difference over seeds; None for a single pair, where `error` stands for it.
        error: Standard error of the first difference, over the samples held back.
    """

    control: tuple[float, ...]
    changed: tuple[float, ...]
    steps: tuple[int, ...]
    interval: Interval | None
    error: float

    @property
    def difference(self) -> float:
        """Mean difference."""
        return float(np.mean(np.subtract(self.changed, self.control)))

    @property
    def wins(self) -> bool:
        """Whether the difference is above what chance makes, and worth a change."""
        room = max(1.0 - float(np.mean(self.control)), 1e-9)
        low = self.interval.low if self.interval is not None else self.difference - 2.0 * self.error
        every = all(changed > control for control, changed in zip(self.control, self.changed, strict=True))
        sampling = self.difference - 2.0 * self.error > 0
        return bool((low > 0 or (every and sampling)) and sampling and self.difference >= LEAST_GAIN * room)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        changes: The winner; empty where nothing is needed or nothing wins.
        proof: Of the winner, or None.
        needed: By how much the score falls without each change of the winner, by name.
        control: The training as it is, as far as it was trained.
        fails: Whether the training as it is fails: breaks, does not learn, or gets worse late.
        complete: False where the search was interrupted.
    """

    changes: Changes
    proof: Proof | None
    needed: dict[str, float]
    control: Result | None
    fails: bool
    complete: bool = True


def search(lab: Lab, tried: Sequence[Changes], known: dict[str, Change], *, healthy: bool) -> Found:
    """Search, and return the best that is proven; Ctrl-C ends the search, not the answer.

    Args:
        lab: Trains the arms.
        tried: Candidates, the most promising first.
        known: Every change by name.
        healthy: Whether the diagnosis found nothing wrong.
    """
    progress = _Progress(lab, known)
    try:
        return progress.run(tried, healthy=healthy)
    except KeyboardInterrupt:
        return progress.so_far(complete=False)


class _Progress:
    def __init__(self, lab: Lab, known: dict[str, Change]):
        self.lab, self.known = lab, known
        self.control: Result | None = None
        self.checkpoints: list[Result] = []
        self.fails = False
        self.winner: Changes = ()
        self.long = 1.0  # share of the training that longer trials have
        self.reached: float = 0.0  # share of the training at which the winner was scored
        self.pairs: list[tuple[Result, Result]] = []
        self.needed: dict[str, float] = {}

    def run(self, tried: Sequence[Changes], *, healthy: bool) -> Found:
        lab = self.lab
        short = min(1.0, max(SHORTEST_TRIAL / lab.full, 1.0 / TRIALS_A_TRAINING))
        self.long = long = min(1.0, LENGTHENED * short)
        checkpoints = [lab.run((), share=share, part="control") for share in sorted({short, long, 1.0})]
        self.control, self.checkpoints = checkpoints[-1], checkpoints
        self.fails = self._fails(checkpoints)
        if healthy and not self.fails:
            return self.so_far()
        if any(lab.learns(one) for one in checkpoints[:-1]):  # short trials cannot tell what prevents a late failure
            return self._against_late_failure()
        scored = self._short_trials(tried, short)
        survivors = self._survivors(scored, long)
        if not survivors:
            return self.so_far()
        chosen = self._simplest(survivors)
        self._keep(chosen, long)
        chosen = self._ablated(chosen, long)
        self._keep(chosen, long)
        self._finals([chosen, *[one for one, _ in survivors if one != chosen]])
        if self.winner:
            self._confirm()
            self._needed(long)
        return self.so_far()

    def so_far(self, *, complete: bool = True) -> Found:
        """Return what is proven by now."""
        proof = self._proof() if self.winner and self.pairs else None
        wins = proof is not None and proof.wins and min(proof.changed) > self.lab.task.chance
        changes = self.winner if wins else ()
        needed = {name: self.needed[name] for name in (change.name for change in changes) if name in self.needed}
        return Found(changes, proof, needed, self.control, self.fails, complete)

    # -- parts ---------------------------------------------------------------------------------------
    def _fails(self, checkpoints: list[Result]) -> bool:
        last = checkpoints[-1]
        if last.error or last.broken is not None or not math.isfinite(last.loss):
            return True
        if self.lab.task.kind == OWN_LOSS:
            return last.peak > FINAL_PEAK and last.score.value < -0.5
        late = any(self.lab.better(one.score, last.score) for one in checkpoints[:-1])
        return late or not self.lab.learns(last, standard_errors=1.0)

    def _against_late_failure(self) -> Found:
        """Train with each remedy in full, the safest first, until one stays learnt to the end."""
        lab = self.lab
        for name in LATE:
            if name not in self.known or (lab.left < lab.full and self.pairs):
                continue
            changes = (self.known[name],)
            result = lab.run(changes, part="finals")
            better = self.pairs == [] or result.score.value > self.pairs[0][1].score.value
            if result.broken is None and not result.error and better:
                self.winner, self.reached, self.pairs = changes, 1.0, [(self.control, result)]
                if lab.better(result.score, self.control.score) and not self._fades(result):
                    break
        if self.winner and lab.left >= lab.full:
            self.pairs.append(tuple(lab.run(some, seed=1, part="other seeds") for some in ((), self.winner)))
        return self.so_far()

    def _fades(self, result: Result) -> bool:
        """Return whether a run to the end is worse than the training as it is was on its way."""
        best = max((one.score for one in self.checkpoints), key=lambda score: score.value)
        return self.lab.better(best, result.score)

    def _short_trials(self, tried: Sequence[Changes], share: float) -> list[tuple[Changes, Result]]:
        lab = self.lab
        room = EXPLORED * max(0.0, lab.left - lab.full)
        count = max(FEWEST_CANDIDATES, int(room / max(1.0, share * lab.full)))
        scored: list[tuple[Changes, Result]] = []
        for changes in tried[:count]:
            if scored and lab.left <= 0:
                break
            scored.append((changes, lab.run(changes, share=share, part="short trials")))
        return [(changes, result) for changes, result in scored if not result.error and result.broken is None]

    def _survivors(self, scored: list[tuple[Changes, Result]], share: float) -> list[tuple[Changes, Result]]:
        if not scored:
            return []
        ranked = sorted(scored, key=lambda pair: (-round(pair[1].score.value, 3), _cost(pair[0])))
        chosen = ranked[:SURVIVORS]
        simple = [pair for pair in ranked if len(pair[0]) == 1 and pair not in chosen]
        chosen += [pair for pair in simple[:1] if self.lab.better(pair[1].score, self._control_at(scored))]
        again = [(changes, self.lab.run(changes, share=share, part="longer trials")) for changes, _ in chosen]
        union = self._union(again)
        if union is not None:
            again.append((union, self.lab.run(union, share=share, part="longer trials")))
        return sorted(again, key=lambda pair: (-pair[1].score.value, _cost(pair[0])))

    def _control_at(self, scored: list[tuple[Changes, Result]]) -> object:
        return self.lab.run((), share=scored[0][1].steps / max(1, self.lab.full), part="control").score

    def _union(self, scored: list[tuple[Changes, Result]]) -> Changes | None:
        """Return the two best single changes together, unless they exclude each other or were tried together."""
        singles = [changes[0] for changes, _ in scored if len(changes) == 1][:2]
        if len(singles) < 2 or singles[0].name.split("_")[0] == singles[1].name.split("_")[0]:
            return None
        both = tuple(sorted(singles, key=list(self.known.values()).index))
        return None if both in [changes for changes, _ in scored] else both

    def _simplest(self, scored: list[tuple[Changes, Result]]) -> Changes:
        """Return the fewest and safest changes that are within chance of the best."""
        best = scored[0][1].score
        near = [changes for changes, result in scored if not self.lab.better(best, result.score)]
        return min(near, key=_cost)

    def _ablated(self, changes: Changes, share: float) -> Changes:
        """Leave out, one after the other, each change without which the score falls by no more than chance."""
        for change in sorted(changes, key=lambda change: -change.risk):
            if len(changes) == 1:
                break
            fewer = tuple(one for one in changes if one is not change)
            whole, part = (self.lab.run(some, share=share, part="ablation") for some in (changes, fewer))
            if not part.error and part.broken is None and not self.lab.better(whole.score, part.score):
                changes = fewer
        return changes

    def _keep(self, changes: Changes, share: float) -> None:
        self.winner, self.reached = changes, share
        self.pairs = [tuple(self.lab.run(some, share=share, part="longer trials") for some in ((), changes))]

    def _finals(self, finalists: list[Changes]) -> None:
        """Train finalists in full while the budget lasts, and keep the best; one that fails late is made safer."""
        lab = self.lab
        done: list[tuple[Changes, Result]] = []
        for changes in finalists[:2]:
            if done and (lab.left < lab.full or (lab.learns(done[0][1]) and done[0][1].score.value > 0.95)):
                break
            done.append((changes, lab.run(changes, share=1.0, part="finals")))
        learning = [pair for pair in done if lab.learns(pair[1], standard_errors=1.0)]
        for name in LATE if not learning else ():
            if lab.left < lab.full or name not in self.known:
                continue
            safer = (*finalists[0], self.known[name])
            done.append((safer, lab.run(safer, share=1.0, part="finals")))
            learning = [pair for pair in done if lab.learns(pair[1], standard_errors=1.0)]
            if learning:
                break
        if not learning:
            self.winner, self.pairs = (), []
            return
        learning.sort(key=lambda pair: -pair[1].score.value)
        self.winner, self.reached = self._simplest(learning), 1.0
        result = next(result for changes, result in learning if changes == self.winner)
        self.pairs = [(self.control, result)]

    def _confirm(self) -> None:
        """Compare with other seeds, as long as the budget allows, at least as long as the longer trials."""
        lab = self.lab
        room = lab.left / lab.full / (2 * len(SEEDS[1:]) + len(self.winner))
        share = min(1.0, max(self.long, room))
        for seed in SEEDS[1:]:
            pair = tuple(lab.run(changes, seed=seed, share=share, part="other seeds") for changes in ((), self.winner))
            self.pairs.append(pair)

    def _needed(self, share: float) -> None:
        """Measure by how much the score falls without each change; alone, a change is needed by its own proof."""
        lab = self.lab
        for change in self.winner:
            fewer = tuple(one for one in self.winner if one is not change)
            whole, part = (lab.run(some, share=share, part="ablation") for some in (self.winner, fewer))
            self.needed[change.name] = whole.score.value - part.score.value

    def _proof(self) -> Proof:
        control = tuple(one.score.value for one, _ in self.pairs)
        changed = tuple(other.score.value for _, other in self.pairs)
        differences = np.subtract(changed, control)
        interval = bootstrap_interval(differences) if len(differences) > 1 else None
        _, error = self.lab.compared(self.pairs[0][1].score, self.pairs[0][0].score)
        return Proof(control, changed, tuple(other.steps for _, other in self.pairs), interval, error)


def _cost(changes: Changes) -> tuple[int, int]:
    """Return what makes one set of changes costlier than another: the riskiest of them, then how many they are."""
    return len(changes), sum(change.risk for change in changes)
