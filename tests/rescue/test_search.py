"""What the search does with trials, on arms that are made up: no model is trained."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.changes import Change
from gradrecipes.rescue.lab import Lab, OutOfBudgetError
from gradrecipes.rescue.original import Setup
from gradrecipes.rescue.search import search
from gradrecipes.rescue.task import CLASSES, OWN_LOSS, Score, Task

FULL = 400
NAMES = ("a", "b", "c", "rate_0.1", "clip")
KNOWN = {name: Change(name, name, 0, lambda setup: setup) for name in NAMES}


@dataclass
class MadeUp(Lab):
    """A lab whose arms score what a function of the names, the seed and the share says."""

    score: object = None
    loss: object = None  # of the share; None: never falls
    held_back: int = 200  # samples
    seen: dict = field(default_factory=dict)  # what else a result has
    asked: list = field(default_factory=list)

    @property
    def full(self):
        return FULL

    def run(self, changes, *, seed=0, share=1.0, part=""):
        names = tuple(change.name for change in changes)
        steps = max(1, round(share * FULL))
        value = self.score(frozenset(names), seed, share)
        broken, error = (steps if value is None else None), value if isinstance(value, str) else ""
        if (names, seed, steps) not in self.asked:
            self.asked.append((names, seed, steps))
        value = -1.0 if value is None or error else value
        right = np.arange(self.held_back) < self.held_back * value
        loss = self.loss(share) if self.loss else 1.0
        seen = {"peak": 1.0, "fit": 1.0, "falls": value > 0.1, **self.seen}
        result = Result(steps, Score(value, right.astype(float)), loss, broken, error, **seen)
        self._results[names, seed, steps] = result
        return result

    def has_run(self, changes, share):
        return (tuple(change.name for change in changes), 0, round(share * FULL)) in self._results

    def longest(self, *names, seed=0):
        return max((steps for tried, with_seed, steps in self.asked if (tried, with_seed) == (names, seed)), default=0)


def lab(score, budget=10_000):
    task = Task(CLASSES, 10, 0.1, None, None)
    setup = Setup(batch_size=32, epochs=1)
    feed = SimpleNamespace(sample_weight=None, samples=500)
    return MadeUp(setup, feed, task, None, None, budget, lambda words: None, score=score)


def run(score, *tried, healthy=False, budget=10_000, held_back=200, suggested=(), seen_to_learn=False, **own):
    made = lab(score, budget)
    made.seen = {name: own.pop(name) for name in [*own] if name in vars(Result(0, None)) and name != "loss"}
    for name, value in own.items():
        setattr(made, name, value)
    made.held_back = held_back
    candidates = [tuple(KNOWN[name] for name in names) for names in tried]
    options = {"healthy": healthy, "suggested": suggested, "seen_to_learn": seen_to_learn}
    return made, search(made, candidates, KNOWN, **options)


def names(found):
    return [change.name for change in found.changes]


def rises(share, top):
    return 0.1 + (top - 0.1) * min(1.0, 8 * share)


def test_a_training_that_stands_still_is_stopped_and_stays_whole_without_a_cause():
    for top, end in ((0.9, 1 / 2), (1.6, 1 / 4)):  # a quarter is no slow start beside what had half by a twentieth
        made, found = run(lambda names, seed, share, top=top: rises(share, top) if "a" in names else 0.1, ("a",))
        assert (names(found), made.longest()) == (["a"], FULL * end)
    made, found = run(lambda names, seed, share: 0.1 if share < 0.8 else 0.9, ("a",), healthy=True)
    assert made.longest() == FULL
    assert (names(found), found.fails) == ([], False)


@pytest.mark.parametrize("wrong_loss", [True, False])
def test_a_wrong_loss_that_falls_is_no_reason_to_go_on(wrong_loss):
    options = {"falls": True, "wrong_loss": wrong_loss, "suggested": ("a",)}
    made, found = run(lambda names, seed, share: rises(share, 1.6) if names else 0.1, ("a",), **options)
    assert (names(found), made.longest()) == (["a"], FULL / 4 if wrong_loss else FULL)


def test_few_samples_held_back_do_not_prove_that_a_training_fails():
    def score(names, seed, share):
        return 0.25  # one of four samples: above a constant prediction of 0.1, by less than a standard error

    assert run(score, ("a",), healthy=True, held_back=4)[1].fails is False
    assert run(score, ("a",), held_back=4)[1].fails is True


@pytest.mark.parametrize(("baseline", "fit", "fails"), [(1.0, 0.5, False), (1.0, 0.98, True), (None, 0.5, True)])
def test_what_the_score_misreads_is_judged_by_the_fit_to_the_training_data(baseline, fit, fails):
    _, found = run(lambda names, seed, share: 0.1, ("a",), healthy=True, baseline_loss=lambda: baseline, fit=fit)
    assert found.fails is fails


@pytest.mark.parametrize(("fit", "loss", "tried"), [(3.8, 2.9, True), (2.0, 2.9, False), (3.8, None, False)])
def test_a_training_whose_own_loss_is_above_that_of_a_constant_prediction_is_tried_to_improve(fit, loss, tried):
    def score(names, seed, share):
        return rises(share, 0.2 if names != {"rate_0.1"} else 0.6)

    options = {"healthy": True, "fit": fit, "loss": lambda share: fit, "baseline_loss": lambda: loss}
    made, found = run(score, ("a",), ("rate_0.1",), **options)
    assert (names(found) == ["rate_0.1"], made.longest("rate_0.1") > 0) == (tried, tried)


def test_of_a_training_that_learns_only_what_a_cause_suggests_is_tried():
    def score(names, seed, share):
        return rises(share, 0.9 if names else 0.6)

    made, found = run(score, ("a", "b"), ("a",), ("clip",), ("b",), suggested=("a",))
    assert names(found) == ["a"]
    assert {tried for tried, *_ in made.asked} == {(), ("a",)}


def test_nothing_is_said_of_what_no_budget_was_left_for():
    def score(names, seed, share):
        return rises(share, 0.6)

    assert run(score, ("a",), ("b",), suggested=("a", "b"))[1].complete is True
    assert run(score, ("a",), ("b",), suggested=("a", "b"), budget=0)[1].complete is False


def test_twice_as_much_is_worth_a_change_where_little_can_be_learned():
    def score(names, seed, share):
        return rises(share, 0.19 if names else 0.14)  # a tenth of the way to 1 would be 0.09

    _, found = run(score, ("a",), suggested=("a",), held_back=20_000)
    assert names(found) == ["a"]


CHANCE = 0.1  # score of a constant prediction


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize(
    ("fit", "logged", "noise", "learned"),
    [
        (0.95, 1.0, 0.0, True),
        (0.995, 1.0, 0.0, False),  # less than a direction of noise explains
        (1.5, 0.9, 0.01, True),  # in training, while the moving averages lag behind
        (1.5, 0.9, 0.05, False),  # within the noise of the batches
        (float("nan"), 0.5, 0.0, False),
    ],
)
def test_a_training_whose_score_says_nothing_is_seen_to_learn_by_its_loss(healthy, fit, logged, noise, learned):
    options = {"fit": fit, "loss_error": noise, "loss": lambda share: logged, "baseline_loss": lambda: 1.0}
    made, found = run(lambda names, seed, share: CHANCE, ("a",), healthy=healthy, **options)
    assert (names(found), found.learned, found.breaks) == ([], learned, False)
    assert made.longest("a") > 0  # a change may be what it needs all the same


@pytest.mark.parametrize(("healthy", "minimized"), [(True, False), (True, True), (False, False)])
def test_a_loss_that_no_step_minimizes_may_grow(healthy, minimized):
    options = {"healthy": healthy, "minimized": minimized, "peak": 50.0, "task": Task(OWN_LOSS, None, 0.0, None, None)}
    assert run(lambda names, seed, share: -1.0, ("a",), **options)[1].breaks is (minimized or not healthy)


@pytest.mark.parametrize("seen", ["falls", "fell"])
@pytest.mark.parametrize(("healthy", "baseline"), [(True, 1.0), (True, None), (False, 1.0), (False, None)])
def test_without_a_cause_a_loss_counts_that_still_falls_or_fell_where_no_constant_is_known(seen, healthy, baseline):
    options = {"healthy": healthy, "baseline_loss": lambda: baseline, seen: True}
    made, found = run(lambda names, seed, share: CHANCE, ("a",), **options)
    learned = healthy and (seen == "falls" or baseline is None)
    assert (names(found), found.learned, made.longest("a") > 0) == ([], learned, True)


@pytest.mark.parametrize(("value", "learned"), [(0.15, False), (0.3, True)])
def test_a_score_little_above_chance_proves_nothing_beside_a_cause(value, learned):
    seen = {"baseline_loss": lambda: 1.0, "fit": 1.0, "held_back": 2000}
    assert run(lambda names, seed, share: value, ("a",), **seen)[1].learned is learned
    assert run(lambda names, seed, share: value, ("a",), healthy=True, **seen)[1].learned is True


def test_what_the_diagnosis_and_the_loss_see_to_learn_is_left_alone():
    options = {"healthy": True, "baseline_loss": lambda: 1.0, "fit": 0.95}
    made, found = run(lambda names, seed, share: 0.9 if names else CHANCE, ("a",), seen_to_learn=True, **options)
    assert (names(found), found.fails, found.learned, made.longest("a")) == ([], False, True, 0)
    assert names(run(lambda names, seed, share: rises(share, 0.9) if names else CHANCE, ("a",), **options)[1]) == ["a"]


@pytest.mark.parametrize(("slope", "noise", "late"), [(1.0, 0.0, True), (1.0, 1.0, False), (-1.0, 0.0, False)])
def test_overfitting_and_a_loss_that_rises_within_its_noise_are_no_late_failure(slope, noise, late):
    def score(names, seed, share):
        return 0.9 if share < 0.4 else 0.7

    found = run(score, ("a",), healthy=True, loss=lambda share: 1.0 + slope * share, loss_error=noise)[1]
    assert (found.breaks, found.fails, found.learned) == (late, late, not late)


@pytest.mark.parametrize(("as_it_is", "changes"), [(0.1, ["a"]), (0.3, [])])
def test_the_limit_ends_the_search_with_what_is_proven_of_a_training_that_fails(as_it_is, changes):
    def score(names, seed, share):
        if len(names) and share == 1.0:
            raise OutOfBudgetError
        return rises(share, 0.9 if names else as_it_is)

    _, found = run(score, ("a",), suggested=("a",))
    assert (found.complete, names(found), found.final) == (False, changes, None)


def test_an_error_of_the_copy_alone_is_no_failure_to_mend():
    def score(names, seed, share):
        return rises(share, 0.9) if names else "AttributeError: no optimizer"

    made, found = run(score, ("a",), healthy=True)
    assert (names(found), found.fails, [tried for tried, *_ in made.asked]) == ([], True, [()])
    assert names(run(score, ("a",))[1]) == ["a"]  # the diagnosis says that the training itself raises, say


def test_candidates_are_tried_until_several_are_no_better():
    tried = [(name,) for name in ("a", "b", "c", "clip", "rate_0.1")]
    made, _ = run(lambda names, seed, share: rises(share, 0.9) if names else 0.1, *tried)
    assert made.longest("clip") > made.longest("rate_0.1") == 0


@pytest.mark.parametrize(("top", "sets", "more"), [(1.2, False, False), (0.8, True, False), (0.4, True, True)])
def test_a_single_change_that_is_excellent_or_that_no_set_beats_ends_the_trials(top, sets, more):
    made, _ = run(lambda names, seed, share: rises(share, top) if names else 0.1, ("a",), ("b", "c"), ("clip",))
    assert (made.longest("b", "c") > 0, made.longest("clip") > 0) == (sets, more)


def test_a_clear_single_change_that_does_not_hold_is_looked_beyond():
    def score(names, seed, share):
        if names == {"a"}:
            return 0.8 if share <= 0.1 else 0.1
        return rises(share, 0.7) if names == {"clip"} else 0.1

    _, found = run(score, ("a",), ("b", "c"), ("clip",))
    assert names(found) == ["clip"]


def test_a_single_change_that_ends_excellent_is_not_compared_with_parts_of_a_set():
    def score(names, seed, share):
        top = 0.97 if "a" in names else 0.5
        return rises(share, top) if len(names) > 1 else min(top, 0.55 + share) if names == {"a"} else 0.1

    made, found = run(score, ("a",), ("a", "b", "c"))
    assert names(found) == ["a"]
    assert made.longest("a", "b") == 0


def test_what_raises_an_error_does_not_end_the_sets_that_it_stands_in():
    def score(names, seed, share):
        return "ValueError: no" if "c" in names else rises(share, 0.9) if {"a", "b"} <= names else 0.1

    assert names(run(score, ("a", "b", "c"), ("c",), ("b", "c"))[1]) == ["a", "b"]


def test_a_candidate_that_is_beaten_is_given_up():
    tops = {frozenset(): 0.1, frozenset("a"): 0.95, frozenset("b"): 0.3}
    assert 0 < run(lambda names, seed, share: rises(share, tops[names]), ("a",), ("b",))[0].longest("b") < 40


def test_what_is_not_needed_is_left_out_and_what_is_needed_is_measured():
    def score(names, seed, share):
        return rises(share, 0.9) if {"a", "b"} <= names else 0.1

    _, found = run(score, ("a", "b", "c"))
    assert names(found) == ["a", "b"]
    assert all(value > 0.1 for value in found.needed.values())


@pytest.mark.parametrize("needed", [{"a", "b"}, {"c", "clip"}, {"a"}, {"a", "b", "c", "clip", "rate_0.1"}])
def test_halves_of_many_changes_are_left_out_at_once(needed):
    def score(names, seed, share):
        return rises(share, 0.9) if needed <= names else 0.1

    made, found = run(score, NAMES)
    assert set(names(found)) == needed
    assert set(found.needed) == needed and min(found.needed.values()) > 0.1
    left_out = {tried for tried, seed, _ in made.asked if tried and not seed and set(tried) != needed} - {NAMES}
    assert len(left_out) <= len(NAMES) + 2


@pytest.mark.parametrize(
    ("alone", "changes"),
    [
        (lambda share: 0.94 - 0.4 * (0.1 / share) ** 1.5, ["a"]),  # learns as a power of the steps
        (lambda share: 0.94 - 0.4 * (0.1 / share) ** 0.2, ["a", "b"]),
        (lambda share: 0.4 if share < 0.3 else 0.93, ["a"]),
        (lambda share: 0.4 if share < 0.3 else 0.7, ["a", "b"]),
    ],
)
@pytest.mark.parametrize("full", [50, FULL])
def test_a_change_that_only_quickens_the_start_is_left_out(monkeypatch, full, alone, changes):
    monkeypatch.setattr(f"{__name__}.FULL", full)

    def score(names, seed, share):
        return (0.97 if "b" in names else alone(share)) if "a" in names else 0.1

    assert names(run(score, ("a", "b"), ("a",))[1]) == changes


SETTLED = {"steady": True, "base": Setup(batch_size=32, epochs=1, optimizer="SGD", learning_rate=0.1)}


@pytest.mark.parametrize(
    ("rise", "more", "share"),
    [
        (lambda share: rises(share, 0.9), {}, 0.5),
        (lambda share: rises(share, 0.9), {"steady": False}, 1.0),
        (lambda share: rises(share, 0.9), {"base": replace(SETTLED["base"], schedule="CosineDecay")}, 1.0),
        (lambda share: rises(share, 0.9), {"loss": lambda share: share}, 1.0),
        (lambda share: 0.4 + 0.4 * share, {}, 1.0),  # gains a tenth in each quarter
    ],
)
def test_a_final_training_ends_half_way_where_it_has_settled(rise, more, share):
    made, found = run(lambda names, seed, at: rise(at) if names else 0.1, ("a",), **{**SETTLED, **more})
    assert (names(found), made.longest("a"), found.final.steps) == (["a"], share * FULL, share * FULL)


@pytest.mark.parametrize(
    ("as_it_is", "more", "steps"),
    [
        (lambda share: rises(share, 0.5), {}, FULL / 2),
        (lambda share: 0.7 + 0.3 * np.log2(2 * share), {}, FULL),  # gains as much in each doubling
        (lambda share: rises(share, 0.5), {"steady": False}, FULL),
        (lambda share: rises(share, 0.5), {"base": replace(SETTLED["base"], schedule="CosineDecay")}, FULL),
    ],
)
def test_a_training_beside_a_cause_ends_half_way_where_it_cannot_reach_what_wins(as_it_is, more, steps):
    def score(names, seed, share):
        return rises(share, 0.9) if "a" in names else as_it_is(share)

    made, found = run(score, ("a",), ("b",), **{**SETTLED, "suggested": ("a",), **more})
    assert (made.longest(), names(found)) == (steps, [] if as_it_is(1.0) > 0.9 else ["a"])
    made, found = run(score, ("b",), ("a",), **{**SETTLED, "suggested": ("b",), **more})
    assert (made.longest(), names(found)) == (FULL, [])  # nothing wins that a cause suggests


def test_what_never_learned_is_not_made_safer():
    assert run(lambda names, seed, share: 0.1, ("a",), falls=True)[0].longest("a", "clip") == 0


def test_a_change_is_compared_with_a_broken_training_when_it_has_learned():
    def score(names, seed, share):
        return rises(share, 0.9) - (0.8 if share < 0.15 else 0.0) if names else None

    _, found = run(score, ("a",))
    assert names(found) == ["a"]
    assert min(found.proof.changed) > 0.1


def test_seeds_are_added_until_the_interval_excludes_zero():
    _, found = run(lambda names, seed, share: rises(share, 0.9) if names else 0.1, ("a",))
    assert len(found.proof.control) == 2
    _, found = run(lambda names, seed, share: rises(share, 0.9 - 0.25 * (seed == 1)) if names else 0.1, ("a",))
    assert len(found.proof.control) == 3
    _, found = run(lambda names, seed, share: rises(share, 0.9) if names and share > 0.3 * seed else 0.1, ("a",))
    assert found.proof.steps == (FULL / 2, FULL / 2)  # another seed begins to learn later


def test_a_training_that_gets_there_later_needs_nothing():
    def score(names, seed, share):
        return rises(share, 0.9) if names else (0.1 if share < 0.4 else 0.5 if share < 1 else 0.9)

    _, found = run(score, ("a",))
    assert (names(found), found.fails) == ([], False)


def test_what_the_first_cause_suggests_is_trained_on_where_the_winner_learned_little():
    def score(names, seed, share):
        slow = 0.1 if share < 0.3 else 0.9
        return slow if names == {"a"} else 0.3 if names == {"b"} else 0.1

    assert names(run(score, ("a",), ("b",))[1]) == ["a"]


def test_a_late_failure_is_repeated_to_its_end():
    def score(names, seed, share):
        return None if not names and share > 0.9 else 0.9

    made, found = run(score, ("a",), ("clip",))
    assert (names(found), made.longest("clip")) == (["clip"], FULL)
    assert found.needed["clip"] > 0.1


def test_a_score_above_chance_for_a_moment_is_no_late_failure():
    def score(names, seed, share):
        return rises(share, 0.9) if "a" in names else 0.4 if share <= 0.1 else 0.1

    assert names(run(score, ("a",), suggested=("a",))[1]) == ["a"]
    made, late = run(lambda names, seed, share: 0.8 if names or share < 0.4 else None, ("a",), suggested=("a",))
    assert names(late) == ["a"] and made.longest("a", seed=1) == FULL / 2  # a cause first; where the other has broken


def test_a_winner_that_fails_late_is_made_safer():
    def score(names, seed, share):
        if "a" not in names:
            return 0.1
        return 0.9 if share < 0.9 or "rate_0.1" in names else None

    def loses_on_its_way(names, seed, share):
        dips = 0.3 < share < 0.9 and "rate_0.1" not in names
        return 0.1 if "a" not in names else 0.7 if dips else 0.95

    _, found = run(score, ("a",))
    assert names(found) == ["a", "rate_0.1"] and found.needed["rate_0.1"] > 0.1
    assert names(run(loses_on_its_way, ("a",), suggested=("rate_0.1",))[1]) == ["a", "rate_0.1"]


def test_nothing_is_advised_that_wins_with_one_seed_only():
    changed = {0: 0.9, 1: 0.16, 2: 0.16}  # above the others, by little beside what the seeds differ
    assert names(run(lambda names, seed, _: changed[seed] if names else 0.1, ("a",), held_back=2000)[1]) == []


@pytest.mark.parametrize(
    ("kind", "minimized", "end", "top", "changes"),
    [
        (CLASSES, True, 0.2, 0.9, ["a"]),
        (CLASSES, True, 0.2, 0.25, []),
        (CLASSES, True, 0.3, lambda share: 0.1 + 0.9 * share, ["a"]),  # as slow, and ahead at each step
        (CLASSES, True, 0.3, lambda share: 0.1 + 0.3 * share, []),
        (OWN_LOSS, True, 0.05, 0.9, ["a"]),
        (OWN_LOSS, True, -0.2, 0.9, ["a"]),
        (OWN_LOSS, False, -0.2, 0.9, []),  # as of adversaries, whose losses say nothing
    ],
)
def test_a_training_that_learned_little_is_compared_with_what_is_obvious(kind, minimized, end, top, changes):
    learned = top if callable(top) else lambda share: rises(share, top)
    made = lab(lambda names, seed, share: learned(share) if names else end * max(0.1, share))
    made.task, made.minimized = Task(kind, 10, 0.1 if kind == CLASSES else 0.0, None, None), minimized
    tried = [(KNOWN["a"], KNOWN["b"]), (KNOWN["a"],)]
    found = search(made, tried, KNOWN, healthy=True, seen_to_learn=True)
    assert names(found) == changes


def test_what_is_frozen_untrained_is_a_cause_where_the_loss_alone_is_known():
    made = lab(lambda names, seed, share: rises(share, 0.9) if names else -0.3)
    made.task, made.minimized = Task(OWN_LOSS, None, 0.0, None, None), False
    assert names(search(made, [], {"unfreeze": Change("unfreeze", "", 0, replace)}, healthy=True)) == ["unfreeze"]
