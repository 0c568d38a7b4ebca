"""Find the smallest set of changes that makes a training work, by paired trials against the training as it is."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Change, Changes, cost_of, kind_of
from gradrecipes.rescue.control import EXCELLENT, HALF, QUARTER, WITHIN, Control, Ends, left_out_next
from gradrecipes.rescue.lab import Lab, OutOfBudgetError
from gradrecipes.rescue.task import OWN_LOSS, Score
from gradrecipes.rescue.verdict import Found

SEEDS = (0, 1, 2)
# Steps of the short trials, as fewer do not tell a slow start from none, but at most such a share of the training.
TRIALS = ((40, 0.1), (20, 0.2))
TRIALS_A_TRAINING = 20  # short trials of a long training that cost as much as it
LENGTHENED = 2  # times as long are the trials of the survivors
SURVIVORS = 2
EXPLORED = 0.6  # share of what is left after the final training that the short trials may use
FEWEST_CANDIDATES = 8  # that are tried; so many in a row that do not beat one which learned a little are enough
GLANCE = 0.5  # share of a short trial after which one is given up that the best so far beats
UNBEATEN = 3  # candidates in a row that are no better than the best before them end the short trials ...
OBVIOUS = 2  # sets of standard changes that a training which learned little is compared with
SLOW_START = 4.0  # times as long as what works took to learn half: one that stands still for so long does not learn
UNTRAINED = "unfreeze"  # name of the change that trains frozen layers which were never trained
# Against what happens late, the safest first.
LATE = ("constant_rate", "plain_optimizer", "guard", "clip", "rate_0.1", "warm_up", "adam")


def search(
    lab: Lab,
    tried: Sequence[Changes],
    known: dict[str, Change],
    *,
    healthy: bool,
    suggested: Collection[str] = (),
    seen_to_learn: bool = False,
) -> Found:
    """Search, and return the best that is proven; Ctrl-C and the budget end the search, not the answer.

    Args:
        lab: Trains the arms.
        tried: Candidates, the most promising first.
        known: Every change by name.
        healthy: Whether the diagnosis found nothing wrong.
        suggested: Names of the changes that a cause suggests which the diagnosis found.
        seen_to_learn: Whether the trial of the diagnosis learned, with nothing wrong found.
    """
    progress = _Progress(lab, known, suggested, seen_to_learn=seen_to_learn)
    try:
        return progress.run(tried, healthy=healthy)
    except (KeyboardInterrupt, OutOfBudgetError):
        return progress.so_far(complete=False)


Scored = list[tuple[Changes, Result]]


class _Progress:
    def __init__(self, lab: Lab, known: dict[str, Change], suggested: Collection[str], *, seen_to_learn: bool = False):
        self.lab, self.known, self.suggested = lab, known, suggested
        shortest = max(min(steps / lab.full, share) for steps, share in TRIALS)
        self.short = max(shortest, 1.0 / TRIALS_A_TRAINING)
        self.long = min(1.0, LENGTHENED * self.short)
        self.control = Control(lab, seen_to_learn=seen_to_learn)
        self.hurried = True  # whether a single change that looks clear ends the short trials
        self.clear: Changes = ()  # the one that did
        self.first: Changes = ()  # what the diagnosis suggests before all else
        self.cut_short = False  # whether the budget ended before all was tried that a cause suggests
        self.winner: Changes = ()
        self.ends = Ends(lab, self.control, self.long)
        self.pairs: list[tuple[Result, Result]] = []
        self.needed: dict[str, float] = {}

    def run(self, tried: Sequence[Changes], *, healthy: bool) -> Found:
        """Train the user's own, then candidates that are ever fewer, ever longer."""
        self.first = tried[0] if tried else ()
        control = self.control
        control.train(self.short, self.long, stoppable=not healthy, pausable=bool(self.suggested) and not healthy)
        if control.paused:
            lengths = (self.long, HALF) if control.learned_early else (self.short, self.long)
            self._narrowed([changes for changes in tried if self._is_called_for(changes)], *lengths)
            if self.winner and control.cannot_reach(self.lab.run(self.winner, share=HALF, part="finals")):
                found = self.so_far()
                if found.changes and found.final is not None and self.ends.half_learned(found.final):
                    return found
            control.train(self.short, self.long, stoppable=True)
        obvious = [changes for changes in tried if len(changes) > 1][:OBVIOUS]
        far_below = not (self.suggested and not healthy) and control.ends_far_below(obvious, self.short)
        if healthy and (not (control.fails or control.doubtful or far_below) or control.last.error):
            # It ran in the diagnosis: an error is the copy's. What is frozen, but was never trained, is a cause.
            if control.learned or control.last.error or UNTRAINED not in self.known:
                return self.so_far()
            tried = [(self.known[UNTRAINED],)]
        if control.fails_late:  # short trials cannot tell what prevents that
            best = max((one.score for one in control.checkpoints), key=lambda score: score.value)
            if self._made_safer((), 1.0, best=best) and self.lab.left >= self.lab.full:
                ends = (share for share in (self.long, HALF) if control.at(share, seed=1).broken is not None)
                self.pairs.append(self._pair(self.winner, 1, next(ends, 1.0)))  # what broke cannot win any more
            return self.so_far()
        first, longer = (self.long, HALF) if control.learned_early else (self.short, self.long)
        if not (control.fails or far_below):  # what no cause suggests is a matter of tuning, not of repair
            self._narrowed([changes for changes in tried if self._is_called_for(changes)], first, longer)
            found = self.so_far()
            learned = found.changes and found.final is not None and self.ends.half_learned(found.final)
            if learned or not control.ends_far_below(obvious, self.short):
                return found
        self._narrowed(tried, first, longer)
        if self.clear and control.fails and not self.so_far().changes and self.lab.left > 0:
            self.hurried = False  # the single change that looked clear does not hold
            self._narrowed([changes for changes in tried if changes != self.clear], first, longer)
        return self.so_far()

    def _is_called_for(self, changes: Changes) -> bool:
        """Return whether a cause suggests these changes; without a cause, whether they leave the net as it is."""
        if not self.suggested:
            return all(change.risk == 0 for change in changes)
        return all(change.name in self.suggested for change in changes)

    def _narrowed(self, tried: Sequence[Changes], first: float, longer: float) -> None:
        self.winner, self.pairs, self.needed = (), [], {}
        survivors = self._survivors(self._short_trials(tried, first), longer)
        if self.clear and self.hurried and not (survivors and self.ends.half_learned(survivors[0][1])):
            return
        if survivors:
            self._finals(survivors, longer)
        if self.winner:
            self._confirm(longer)

    def so_far(self, *, complete: bool = True) -> Found:
        """Return what is proven by now."""
        proof = self.lab.proof(self.pairs) if self.winner and self.pairs else None
        wins = proof is not None and proof.wins and min(proof.changed) > self.lab.task.baseline_score
        final = self.ends.of.get(self.winner)
        wins = wins and (complete or self.control.fails or final is not None)  # one that learns may be left alone
        changes = self.winner if wins else ()
        needed = {name: self.needed[name] for name in (change.name for change in changes) if name in self.needed}
        complete = complete and not self.cut_short
        control = self.control
        fails = control.fails or control.doubtful
        seen = {"learned": control.learned, "breaks": control.breaks, "baseline_loss": control.baseline}
        return Found(changes, proof, final, needed, control.last, fails, complete, **seen)

    def _made_safer(self, changes: Changes, share: float, best: Score | None = None) -> bool:
        """Add a remedy, one for a cause first, until the training stays learned, not below the best it had reached."""
        lab, ended, suggested = self.lab, {}, [*self.suggested][:UNBEATEN]
        self.ends.to_last_step = True
        names = sorted(LATE, key=lambda name: suggested.index(name) if name in suggested else len(LATE))
        names = [*(() if changes else suggested[:1]), *names]
        for name in [one for one in names if one in self.known and self.known[one] not in changes]:
            if lab.limit - lab.spent < lab.full and (changes or ended):
                break
            if self.ends.holds(safer := (*changes, self.known[name])):
                ended[name] = safer
                if best is None or not lab.better(best, self.ends.of[safer].score):
                    break
        if ended:
            name = max(ended, key=lambda name: self.ends.score(ended[name]))
            self._keep(ended[name], share)
            without = lab.run(changes, part="finals")
            self.needed[name] = self.ends.score(ended[name]) - without.score.value
        return bool(ended)

    def _short_trials(self, tried: Sequence[Changes], share: float) -> Scored:
        """Try candidates until several in a row are no better than the best before them."""
        lab = self.lab
        room = max(EXPLORED * (lab.left - lab.full), FEWEST_CANDIDATES * share * lab.full)
        room = lab.spent + room if self.control.fails or not self.suggested else math.inf
        best, unbeaten, unbeaten_sets = ((), self.control.at(share)), 0, 0
        scored: Scored = []
        seen: list[Changes] = []
        raising: set[Change] = set()  # what this model does not take must not end the sets that it stands in
        pending = list(tried)
        while pending:
            changes = tuple(one for one in pending.pop(0) if one not in raising)
            if not changes or changes in seen:
                continue
            seen.append(changes)
            # One set of several changes says what can be had; a single change that it does not beat is enough.
            clear = self.hurried and len(best[0]) == 1
            excellent = best[1].score.value >= EXCELLENT and lab.task.kind != OWN_LOSS
            clear = clear and (unbeaten_sets > 0 or excellent)
            found = (clear or unbeaten >= UNBEATEN) and self.ends.half_learned(best[1])
            found = found or (best[0] and unbeaten >= FEWEST_CANDIDATES and lab.learns(best[1]))
            if scored and (lab.left <= 0 or lab.spent >= room or found):
                self.clear = best[0] if clear else self.clear
                self.cut_short = lab.left <= 0 and not self.control.fails
                break
            unbeaten, unbeaten_sets = unbeaten + 1, unbeaten_sets + (len(changes) > 1)
            probe = lab.run(changes, share=GLANCE * share, part="short trials")
            if probe.error and (culprit := self._raising(changes, share)):
                raising.add(culprit)
                pending.insert(0, changes)
            if probe.error or probe.broken is not None or (best[0] and self._is_behind(probe, best[0], share)):
                continue
            result = lab.run(changes, share=share, part="short trials")
            if result.error or result.broken is not None:
                continue
            scored.append((changes, result))
            if lab.better(result.score, best[1].score):
                best, unbeaten, unbeaten_sets = (changes, result), 0, 0
        return scored

    def _raising(self, changes: Changes, share: float) -> Change | None:
        """Return which of some changes raises an error by itself, the riskiest first."""
        alone = sorted(changes, key=lambda change: -change.risk)
        glances = ((one, self.lab.run((one,), share=GLANCE * share, part="short trials")) for one in alone)
        return next((one for one, glance in glances if glance.error), None)

    def _is_behind(self, probe: Result, best: Changes, share: float) -> bool:
        """Return whether the best so far learned by the same step, and was better by more than chance."""
        then = self.lab.run(best, share=GLANCE * share, part="short trials")
        return self.lab.learns(then) and self.lab.better(then.score, probe.score)

    def _survivors(self, scored: Scored, share: float) -> Scored:
        """Train further what the best does not beat beyond chance, and return it, the best first."""
        lab = self.lab
        if not scored:
            return []
        ranked = sorted(scored, key=lambda pair: (-round(pair[1].score.value, 3), cost_of(pair[0])))
        near = self._near(ranked)
        count = SURVIVORS if lab.learns(ranked[0][1]) else 2 * SURVIVORS
        simplest = min(near, key=lambda pair: cost_of(pair[0]))
        single = self.hurried and len(simplest[0]) == 1 and self.ends.half_learned(simplest[1])
        count = 1 if single else count
        chosen = near[:count] + [simplest] * (simplest not in near[:count])
        again = [(changes, lab.run(changes, share=share, part="longer trials")) for changes, _ in chosen]
        union = None if single else self._union(again)
        if union is not None and max(result.score.value for _, result in again) < EXCELLENT:
            again.append((union, lab.run(union, share=share, part="longer trials")))
        again = [pair for pair in again if not pair[1].error and pair[1].broken is None]
        if not any(lab.learns(result) for _, result in again):
            order = [changes for changes, _ in scored]  # what was tried first is the most promising
            return sorted(again, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
        return sorted(again, key=lambda pair: (-pair[1].score.value, cost_of(pair[0])))

    def _union(self, scored: Scored) -> Changes | None:
        """Return the two best single changes together, unless they exclude each other or were tried together."""
        singles = [changes[0] for changes, _ in scored if len(changes) == 1][:2]
        if len(singles) < 2 or kind_of(singles[0].name) == kind_of(singles[1].name):
            return None
        both = tuple(sorted(singles, key=list(self.known.values()).index))
        return None if both in [changes for changes, _ in scored] else both

    def _near(self, scored: Scored) -> Scored:
        """Return what is within chance of the best, which stands first."""
        return [pair for pair in scored if not self.lab.better(scored[0][1].score, pair[1].score)]

    def _ablated(self, changes: Changes, *, to_the_end: bool = True) -> Changes:
        """Leave out each change without which the score falls by no more than chance, and measure what the others are.

        First all but what the surest cause suggests, then all that did not learn alone, then halves, then one after the
        other, the riskiest first. What was needed in a larger set is measured once more in the last one.

        Args:
            changes: To leave some out of.
            to_the_end: Whether a change is left out, too, without which the training is behind by then, but not at its
                end, as far as can be told.
        """
        whole = changes  # small losses must not add up
        alone = tuple(one for one in changes if self.lab.has_learned((one,)))
        few = [some for some in (self.first, alone) if 0 < len(some) < len(changes)]
        need = functools.partial(self._need, to_the_end=to_the_end)
        changes = next((some for some in few if need(changes, some) is None), changes)
        measured: dict[Changes, tuple[Changes, float]] = {}  # by part, in which set, and what it loses without
        while pending := left_out_next(changes, measured):
            part = pending[0]
            fewer = tuple(one for one in changes if one not in part)
            loss = need(changes, fewer)
            if loss is None and fewer and (changes == whole or need(whole, fewer) is None):
                changes = fewer
                continue
            if len(part) == 1 and loss is None:
                one, other = (self.lab.run(some, share=self.long, part="ablation") for some in (changes, fewer))
                loss = one.score.value - other.score.value
            measured[part] = (changes, 0.0 if loss is None else loss)
        self.needed = {one.name: measured[(one,)][1] for one in changes}
        return changes

    def _need(self, changes: Changes, fewer: Changes, *, to_the_end: bool) -> float | None:
        """Return by how much the score falls with fewer changes; None where that is within chance.

        Learning curves follow power laws of the steps. What only quickens the start is a distance that shrinks from one
        length to the next; at the end of the training it has shrunk by the same power, and may be within 5%.
        """
        lab, share, falls = self.lab, self.long, []
        lengths = [self.short] if self.short < share and lab.has_run(changes, self.short) else []
        for length in (*lengths, share):
            whole, part = (lab.run(some, share=length, part="ablation") for some in (changes, fewer))
            falls.append(whole.score.value - part.score.value)
            if part.error or part.broken is not None:
                return falls[-1]
            slow = to_the_end and (lab.learns(part) or fewer == self.first)
            if lab.better(whole.score, part.score) and not slow:
                return falls[-1]
        if not lab.better(whole.score, part.score):
            return None
        power = math.log(falls[1] / falls[0]) / math.log(share / self.short) if len(falls) > 1 and falls[0] > 0 else 0.0
        ends = falls[-1] * (1.0 / share) ** power
        return None if ends <= WITHIN * (whole.score.value - lab.task.baseline_score) else falls[-1]

    def _finals(self, survivors: Scored, share: float) -> None:
        """Train the smallest set to the end; larger ones where it fails late, or ends with little learned."""
        lab, fastest = self.lab, survivors[0][0]
        needed: dict[Changes, dict[str, float]] = {}
        ended: list[Changes] = []  # those that learn to the end and do not get worse on the way
        for changes in self._contenders(survivors, share):
            if changes in needed:
                continue
            needed[changes] = self.needed
            if self.ends.holds(changes, beside=ended, ahead=fastest):
                ended.append(changes)
                end = self.ends.of[changes]
                if self.ends.half_learned(end) and self.ends.keeps_up(changes, end, fastest):
                    break
        # What never learned, nothing makes safer.
        if not ended and lab.has_learned(self.winner) and self._made_safer(self.winner, share):
            return
        ended = ended or [some for some in needed if some in self.ends.of and lab.learns(self.ends.of[some])]
        if not ended:
            self.winner, self.pairs = (), []
            return
        best = max(map(self.ends.score, ended))
        least = best - WITHIN * (best - lab.task.baseline_score)
        smallest = min((some for some in ended if self.ends.score(some) >= least), key=cost_of)
        self._keep(smallest, share)
        self.needed = needed[smallest]

    def _contenders(self, survivors: Scored, share: float) -> Iterator[Changes]:
        """Yield what may be trained to the end, the smallest first, with what is needless left out at its turn."""
        lab, fastest = self.lab, survivors[0][0]
        quick = min((changes for changes, _ in self._near(survivors)), key=cost_of)
        quick = quick if lab.learns(survivors[0][1]) else fastest
        self._keep(quick, share)  # until another one is found, or nothing is left to look for one
        parts = [(one,) for one in fastest if len(quick) > 1 and lab.has_learned((one,))]
        singles = [changes for changes, _ in survivors if len(changes) == 1] if len(quick) > 1 else []
        singles = [some for some in dict.fromkeys((*singles, *parts)) if lab.left >= 2 * lab.full]
        if singles:  # it may end as well on its own, though a set learned faster at first
            score = {some: lab.run(some, share=self.long, part="longer trials") for some in singles}
            single = max(singles, key=lambda some: score[some].score.value)
            if lab.learns(score[single]):
                yield single
        chosen = self._ablated(quick)
        self._keep(chosen, share)
        yield chosen
        others = [changes for changes, _ in survivors if changes != chosen and not set(chosen) < set(changes)]
        for changes in dict.fromkeys((fastest, quick, self.first, *others[:1])):
            to_train = lab.full * (1.0 - HALF * lab.has_run(changes, HALF))
            if changes and changes != chosen and lab.left >= to_train:
                yield self._ablated(changes, to_the_end=False)

    def _keep(self, changes: Changes, share: float) -> None:
        self.winner, self.pairs = changes, [self._pair(changes, 0, share)]

    def _pair(self, changes: Changes, seed: int, share: float) -> tuple[Result, Result]:
        part = "other seeds" if seed else "finals"
        return self.control.at(share, seed), self.lab.run(changes, seed=seed, share=share, part=part)

    def _wait(self) -> None:
        """Train the training as it is on, where it may have no more than a slow start beside the winner's."""
        control, lab = self.control, self.lab
        shares = (GLANCE * self.short, self.short, self.long)
        shares = [share for share in shares if lab.has_run(self.winner, share)]
        learned = (share for share in shares if self.ends.half_learned(lab.run(self.winner, share=share)))
        known = control.last.error or control.last.broken is not None or control.last.steps >= HALF * lab.full
        if not known and SLOW_START * next(learned, HALF) > QUARTER:
            control.train(self.short, self.long, stoppable=True, until=HALF)

    def _confirm(self, shortest: float) -> None:
        """Compare where the first seed tells the two apart, with other seeds until their interval excludes zero."""
        lab = self.lab
        self._wait()
        reached = min(1.0, self.control.checkpoints[-1].steps / lab.full)
        if self.control.checkpoints[-1].broken is None and not lab.proof([self._pair(self.winner, 0, reached)]).wins:
            self.winner, self.pairs = (), []  # the training as it is gets there, too, only later
            return
        early = {self.short} if lab.has_run(self.winner, self.short) else set()
        for share in sorted({*early, shortest, max(shortest, HALF), 1.0}):
            pairs = [self._pair(self.winner, 0, share)]
            self.pairs = pairs if len(self.pairs) <= 1 else self.pairs  # one seed does not outweigh another that failed
            if not (lab.proof(pairs).wins and lab.learns(pairs[0][1])):  # the one only fails less
                continue
            for seed in SEEDS[1:]:
                if not lab.proof(pairs).wins or (len(pairs) > 1 and lab.left <= 0):
                    break
                pairs = [*pairs, self._pair(self.winner, seed, share)]
                self.pairs = pairs
                if (interval := lab.proof(pairs).interval) is not None and interval.low > 0:
                    break
            proof = lab.proof(pairs)
            if proof.wins and min(proof.changed) > lab.task.baseline_score:
                break  # else another seed begins to learn later
        if len(self.winner) == 1:
            self.needed = {self.winner[0].name: lab.proof(self.pairs).difference}
