"""Find the smallest set of changes that makes a training work, by paired trials against the training as it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Change, Changes, cost_of, kind_of
from gradrecipes.rescue.control import HALF, HALF_LEARNED, Control
from gradrecipes.rescue.lab import LEAST_GAIN, Lab, OutOfBudgetError
from gradrecipes.rescue.task import OWN_LOSS, Score
from gradrecipes.rescue.verdict import Found

SEEDS = (0, 1, 2)
# Steps of the short trials, as fewer do not tell a slow start from none, but at most such a share of the training.
TRIALS = ((40, 0.1), (20, 0.2))
TRIALS_A_TRAINING = 20  # short trials of a long training that cost as much as it
LENGTHENED = 2  # times as long are the trials of the survivors
SURVIVORS = 2
EXPLORED = 0.6  # share of what is left after the final training that the short trials may use
FEWEST_CANDIDATES = 8
GLANCE = 0.5  # share of a short trial after which one is given up that the best so far beats
UNBEATEN = 3  # candidates in a row that are no better than the best before them end the short trials ...
OBVIOUS = 2  # sets of standard changes that a training which learned little is compared with
WITHIN = 0.05  # of what the best gains over a constant prediction: fewer changes that lose no more are enough
EXCELLENT = 1.0 - WITHIN  # score from which on a better one is not looked for
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
        self.to_the_end = True  # whether what only quickens the start is left out
        self.winner: Changes = ()
        self.final: Result | None = None
        self.pairs: list[tuple[Result, Result]] = []
        self.needed: dict[str, float] = {}

    def run(self, tried: Sequence[Changes], *, healthy: bool) -> Found:
        """Train the user's own, then candidates that are ever fewer, ever longer."""
        self.first = tried[0] if tried else ()
        control = self.control
        control.train(self.short, self.long, stoppable=not healthy)
        far_below = control.ends_far_below([changes for changes in tried if len(changes) > 1][:OBVIOUS], self.short)
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
            tried = [changes for changes in tried if self._is_called_for(changes)]
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
        self.winner, self.pairs, self.final, self.needed = (), [], None, {}
        survivors = self._survivors(self._short_trials(tried, first), longer)
        if self.clear and self.hurried and not (survivors and self._is_half_learned(survivors[0][1])):
            return
        if survivors:
            self._finals(survivors, longer)
        if self.winner:
            self._confirm(longer)

    def so_far(self, *, complete: bool = True) -> Found:
        """Return what is proven by now."""
        proof = self.lab.proof(self.pairs) if self.winner and self.pairs else None
        wins = proof is not None and proof.wins and min(proof.changed) > self.lab.task.baseline_score
        wins = wins and (complete or self.control.fails or self.final is not None)  # one that learns may be left alone
        changes = self.winner if wins else ()
        needed = {name: self.needed[name] for name in (change.name for change in changes) if name in self.needed}
        complete = complete and not self.cut_short
        control = self.control
        fails = control.fails or control.doubtful
        seen = {"learned": control.learned, "breaks": control.breaks, "baseline_loss": control.baseline}
        return Found(changes, proof, self.final, needed, control.last, fails, complete, **seen)

    def _made_safer(self, changes: Changes, share: float, best: Score | None = None) -> bool:
        """Add a remedy, one for a cause first, until the training stays learned, not below the best it had reached."""
        lab, ended, suggested = self.lab, {}, [*self.suggested][:UNBEATEN]
        names = sorted(LATE, key=lambda name: suggested.index(name) if name in suggested else len(LATE))
        names = [*(() if changes else suggested[:1]), *names]
        for name in [one for one in names if one in self.known and self.known[one] not in changes]:
            if lab.limit - lab.spent < lab.full and (changes or ended):
                break
            if self._holds(safer := (*changes, self.known[name])):
                ended[name] = safer
                if best is None or not lab.better(best, lab.run(safer, part="finals").score):
                    break
        if ended:
            name = max(ended, key=lambda name: self._final_score(ended[name]))
            self._keep(ended[name], share, ended=True)
            self.needed[name] = self._final_score(ended[name]) - self._final_score(changes)
        return bool(ended)

    def _short_trials(self, tried: Sequence[Changes], share: float) -> Scored:
        """Try candidates until several in a row are no better than the best before them."""
        lab = self.lab
        room = max(EXPLORED * (lab.left - lab.full), FEWEST_CANDIDATES * share * lab.full)
        room = lab.spent + room if self.control.fails or not self.suggested else math.inf
        best, unbeaten, unbeaten_sets = ((), self.control.at(share)), 0, 0
        scored: Scored = []
        for changes in tried:
            # One set of several changes says what can be had; a single change that it does not beat is enough.
            clear = self.hurried and len(best[0]) == 1
            excellent = best[1].score.value >= EXCELLENT and lab.task.kind != OWN_LOSS
            clear = clear and (unbeaten_sets > 0 or excellent)
            found = (clear or unbeaten >= UNBEATEN) and self._is_half_learned(best[1])
            if scored and (lab.left <= 0 or lab.spent >= room or found):
                self.clear = best[0] if clear else self.clear
                self.cut_short = lab.left <= 0 and not self.control.fails
                break
            unbeaten, unbeaten_sets = unbeaten + 1, unbeaten_sets + (len(changes) > 1)
            probe = lab.run(changes, share=GLANCE * share, part="short trials")
            if probe.error or probe.broken is not None or (best[0] and self._is_behind(probe, best[0], share)):
                continue
            result = lab.run(changes, share=share, part="short trials")
            if result.error or result.broken is not None:
                continue
            scored.append((changes, result))
            if lab.better(result.score, best[1].score):
                best, unbeaten, unbeaten_sets = (changes, result), 0, 0
        return scored

    def _is_half_learned(self, result: Result) -> bool:
        baseline = self.lab.task.baseline_score
        return self.lab.learns(result) and result.score.value >= baseline + HALF_LEARNED * (1.0 - baseline)

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
        single = self.hurried and len(simplest[0]) == 1 and self._is_half_learned(simplest[1])
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

        First all at once but what the surest cause suggests, then all that did not learn alone, then one after the
        other, the riskiest first.

        Args:
            changes: To leave some out of.
            to_the_end: Whether a change is left out, too, without which the training is behind by then, but not at its
                end, as far as can be told.
        """
        whole = changes  # small losses must not add up
        self.to_the_end = to_the_end
        alone = tuple(one for one in changes if self.lab.has_learned((one,)))
        few = [some for some in (self.first, alone) if 0 < len(some) < len(changes)]
        changes = next((some for some in few if self._need(changes, some) is None), changes)
        self.needed, pending = {}, sorted(changes, key=lambda change: -change.risk)
        while pending:
            change = pending.pop(0)
            fewer = tuple(one for one in changes if one is not change)
            need = self._need(changes, fewer)
            if need is None and fewer and (changes == whole or self._need(whole, fewer) is None):
                changes = fewer
                self.needed, pending = {}, sorted(changes, key=lambda change: -change.risk)
            else:
                one, other = (self.lab.run(some, share=self.long, part="ablation") for some in (changes, fewer))
                self.needed[change.name] = one.score.value - other.score.value if need is None else need
        return changes

    def _need(self, changes: Changes, fewer: Changes) -> float | None:
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
            slow = self.to_the_end and (lab.learns(part) or fewer == self.first)
            if lab.better(whole.score, part.score) and not slow:
                return falls[-1]
        if not lab.better(whole.score, part.score):
            return None
        power = math.log(falls[1] / falls[0]) / math.log(share / self.short) if len(falls) > 1 and falls[0] > 0 else 0.0
        ends = falls[-1] * (1.0 / share) ** power
        return None if ends <= WITHIN * (whole.score.value - lab.task.baseline_score) else falls[-1]

    def _finals(self, survivors: Scored, share: float) -> None:
        """Train the smallest set in full; other ones where it fails late, or ends with little learned."""
        lab = self.lab
        fastest = survivors[0][0]
        quick = min((changes for changes, _ in self._near(survivors)), key=cost_of)
        quick = quick if lab.learns(survivors[0][1]) else fastest
        self._keep(quick, share)  # until another one is found, or nothing is left to look for one
        single = self._excellent_single(survivors)
        chosen = single or self._ablated(quick)
        self._keep(chosen, share)
        others = [changes for changes, _ in survivors if changes != chosen and not set(chosen) < set(changes)]
        ended: list[Changes] = []  # those that learn to the end and do not get worse on the way
        needed: dict[Changes, dict[str, float]] = {}
        for changes in dict.fromkeys((chosen, *(() if single else (fastest, quick)), self.first, *others[:1])):
            to_train = lab.full * (1.0 - HALF * lab.has_run(changes, HALF))
            if not changes or (changes != chosen and lab.left < to_train):
                continue
            some = changes if changes == chosen else self._ablated(changes, to_the_end=False)
            needed[some] = self.needed
            if self._holds(some, beside=ended):
                ended.append(some)
                if self._is_half_learned(lab.run(some, part="finals")) and not self._ends_behind(some, fastest):
                    break
        if ended:
            best = max(map(self._final_score, ended))
            least = best - WITHIN * (best - lab.task.baseline_score)
            smallest = min((some for some in ended if self._final_score(some) >= least), key=cost_of)
            self._keep(self._single_of(smallest, least) or smallest, share, ended=True)
            self.needed = needed.get(self.winner, {})
            return
        if self._made_safer(chosen, share):
            return
        learned = [some for some in needed if lab.has_run(some, 1.0) and lab.learns(lab.run(some, part="finals"))]
        if learned:
            self._keep(max(learned, key=self._final_score), share, ended=True)
        else:
            self.winner, self.pairs = (), []

    def _single_of(self, changes: Changes, least: float) -> Changes | None:
        """Return one of several changes that ends as well on its own, though it learned more slowly at first."""
        lab = self.lab
        learned = [(one,) for one in changes if len(changes) > 1 and lab.has_learned((one,))]
        if not learned or lab.left < lab.full:
            return None
        single = max(learned, key=lambda some: lab.run(some, share=self.long, part="finals").score.value)
        early, half = (lab.run(single, share=share, part="finals").score.value for share in (self.long, HALF))
        if half + (half - early) * (1.0 - HALF) / (HALF - self.long) < least or not self._holds(single):
            return None
        return single if self._final_score(single) >= least else None

    def _final_score(self, changes: Changes) -> float:
        return self.lab.run(changes, part="finals").score.value

    def _keep(self, changes: Changes, share: float, *, ended: bool = False) -> None:
        self.winner, self.pairs = changes, [self._pair(changes, 0, share)]
        self.final = self.lab.run(changes, part="finals") if ended else None

    def _ends_behind(self, changes: Changes, fastest: Changes) -> bool:
        """Return whether changes end below where those that learned fastest are half-way already."""
        lab, end = self.lab, self.lab.run(changes, part="finals").score
        if changes == fastest or end.value >= EXCELLENT or lab.left < HALF * lab.full:
            return False
        half = lab.run(fastest, share=HALF, part="finals").score
        return lab.better(half, end) and half.value - end.value > WITHIN * (half.value - lab.task.baseline_score)

    def _excellent_single(self, survivors: Scored) -> Changes | None:
        """Return the best single change if it ends excellent, though a set of several learned faster at first."""
        lab = self.lab
        single, result = next((pair for pair in survivors if len(pair[0]) == 1), ((), None))
        if result is None or not self._is_half_learned(result) or lab.left < 2 * lab.full or not self._holds(single):
            return None
        return single if self._final_score(single) >= EXCELLENT else None

    def _holds(self, changes: Changes, *, beside: Sequence[Changes] = ()) -> bool:
        """Return whether changes learn to the end of the user's training, and do not get worse on the way.

        Args:
            changes: To train.
            beside: Others; what one of them beats half-way is not trained to the end.
        """
        lab = self.lab
        half, *others = (lab.run(some, share=HALF, part="finals") for some in (changes, *beside))
        beaten = any(lab.better(one.score, half.score) for one in others)
        stands_still = not (half.falls or lab.learns(half, standard_errors=1.0))
        if beaten or stands_still or half.error or half.broken is not None:
            return False
        last = lab.run(changes, part="finals")
        way = [lab.run(changes, share=self.long, part="finals")] if lab.has_run(changes, self.long) else []
        worse = any(map(self._is_lost, [*way, half], [*way[1:], half, last]))
        return lab.learns(last, standard_errors=1.0) and not worse

    def _is_lost(self, one: Result, later: Result) -> bool:
        """Return whether much of what was learned is lost at a later step: another seed may end just there."""
        gained = one.score.value - self.lab.task.baseline_score
        return one.score.value - later.score.value > LEAST_GAIN * gained and self.lab.better(one.score, later.score)

    def _pair(self, changes: Changes, seed: int, share: float) -> tuple[Result, Result]:
        part = "other seeds" if seed else "finals"
        return self.control.at(share, seed), self.lab.run(changes, seed=seed, share=share, part=part)

    def _confirm(self, shortest: float) -> None:
        """Compare where the first seed tells the two apart, with other seeds until their interval excludes zero."""
        lab = self.lab
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
