"""When a training goes back: the rules of `Recovery` against a plain reading of its docstring."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.training.recovery.policy import (
    BEGINNING,
    DIVERGED,
    FIRST_FACTOR,
    LEARNED,
    LOST_SHARE,
    NEXT_FACTOR,
    RECENT,
    Action,
    Readings,
    Recovery,
    WeightGrowth,
)


class Ring:
    """What `Recovery` asks of a ring, with a state that the test sets."""

    def __init__(self):
        self.kept, self.finite, self.current = [], True, False
        self.newest = SimpleNamespace(proven=True)

    def __len__(self):
        return len(self.kept)

    def keep(self, step, *, proven=True):
        if self.finite:
            self.newest = SimpleNamespace(proven=proven)
            self.kept = [*self.kept, step][-3:]
        return self.finite

    def is_current(self):
        return self.current

    def state_is_finite(self):
        return self.finite

    def drop_newest(self):
        self.kept.pop()


def recovery(ring, **how):
    return Recovery(ring, **{"every": 10, "max_consecutive_skips": 3, "max_rollbacks": 3, **how})


def at(step, *, skips=0, losses=(), finite=True):
    return Readings(step, skips, np.array(losses, np.float32), finite)


def test_a_snapshot_is_kept_when_one_is_due_and_nothing_is_wrong():
    ring = Ring()
    judge = recovery(ring)
    for step in range(0, 50, 4):
        assert judge.consider(at(step, skips=int(step == 24))) is Action.NOTHING
    assert ring.kept == [12, 28, 40]  # at 24 a step had been skipped


def test_no_snapshot_is_kept_of_a_training_that_has_just_gone_wrong():
    ring = Ring()
    judge = recovery(ring)
    for step, latest in ((0, []), (12, [9.0] * 3), (24, [9.0] * 8), (28, [2.1] * 8)):
        assert judge.consider(at(step, losses=[2.0] * 40 + latest)) is Action.NOTHING
    assert ring.kept == [0, 12, 28]  # three bad losses may be chance; at 24 the median of the last 32 was still 2


def test_the_beginning_is_kept_and_weights_that_break_at_once_go_back_to_it():
    ring = Ring()
    judge = recovery(ring)
    judge.begin(0)
    ring.finite = False
    assert judge.consider(at(4), thoroughly=True) is Action.ROLL_BACK
    assert (judge.reason, judge.back_off, ring.kept) == ("nonfinite_weights", NEXT_FACTOR, [0])  # no rate has trained


def test_weights_that_are_broken_from_the_beginning_stop_it():
    ring = Ring()
    ring.finite = False
    judge = recovery(ring)
    judge.begin(0)
    assert judge.consider(at(4)) is Action.STOP
    assert judge.reason == "nonfinite_weights"


def test_the_rate_is_raised_after_a_snapshot_and_after_twice_as_many_with_each_further_rollback():
    ring = Ring()
    judge = recovery(ring)
    judge.consider(at(0))
    step, waits = 0, []
    for _ in range(3):
        assert judge.consider(at(step + 4, skips=3)) is Action.ROLL_BACK
        assert judge.back_off == FIRST_FACTOR
        start, done = len(waits), []
        while Action.SPEED_UP not in done:
            step += 14
            done.append(judge.consider(at(step)))
        waits.append(len(done))
        assert judge.reason == "recovered"
        assert len(waits) == start + 1
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(("finite", "last"), [(False, Action.STOP), (True, Action.GIVE_WAY)])
def test_where_the_weights_are_good_bad_data_are_borne_and_nothing_goes_back(finite, last):
    ring = Ring()
    judge = recovery(ring)
    judge.consider(at(0))
    for skips in (3, 6, 11):
        readings = replace(at(10 + skips, skips=skips, finite=finite), weights_at_fault=False)
        assert judge.consider(readings) is Action.NOTHING
    assert judge.consider(replace(readings, consecutive_skips=12)) is last
    assert judge.reason == "too_many_skips"
    assert ring.kept == [0]


@pytest.mark.parametrize(("loss", "action"), [(0.3, Action.NOTHING), (1.0, Action.NOTHING), (1.3, Action.ROLL_BACK)])
def test_a_fit_that_begins_with_a_trained_model_is_lost_halfway_back_to_a_constant_answer(loss, action):
    judge = recovery(Ring())
    for step, losses in ((0, []), (40, [0.1] * 40), (80, [0.1] * 40 + [loss] * 40)):
        readings = replace(at(step, losses=losses), baseline=lambda: 2.3)
        found = judge.consider(readings)
    assert found is action  # halfway is 1.2


@pytest.mark.parametrize("skips", [0, 1])
def test_weights_that_are_at_fault_go_back_at_once(skips):
    judge = recovery(Ring())
    judge.consider(at(0))
    assert judge.consider(replace(at(4, skips=skips), weights_at_fault=True)) is Action.ROLL_BACK
    assert judge.reason == ("too_many_skips" if skips else "training_lost")


def run(judge, levels):
    """Return what the judge does when the loss, asked every eight steps, has these levels."""
    remembered, memories, done = [], {0: []}, []
    for step, level in enumerate(levels, start=1):
        remembered = [*remembered, *[level] * 8][-128:]
        memories[8 * step] = remembered
        done.append(judge.consider(at(8 * step, losses=remembered)))
        if done[-1] is Action.ROLL_BACK:
            remembered = memories[judge.ring.kept[-1]]
        elif done[-1] is Action.GIVE_WAY:
            remembered = []
            judge.forget_level()
    return [action for action in done if action is not Action.NOTHING]


def test_a_loss_that_rises_slowly_is_accepted_where_it_is():
    judge = recovery(Ring(), every=40)
    judge.begin(0)
    done = run(judge, 1.03 ** np.arange(60))
    assert set(done) == {Action.GIVE_WAY}
    assert judge.reason == "level_changed"


def test_where_earlier_weights_do_no_better_the_level_has_changed():
    ring = Ring()
    judge = recovery(ring, every=40)
    judge.begin(0)
    done = run(judge, [*[1.0] * 20, *[8.0] * 6])
    assert done == [Action.ROLL_BACK] * 3 + [Action.GIVE_WAY]
    assert (judge.reason, judge.back_off, judge.rollbacks) == ("level_changed", 1.0, 0)


def test_where_earlier_weights_do_better_it_goes_on_from_them():
    judge = recovery(Ring(), every=40)
    judge.begin(0)
    done = run(judge, [*[1.0] * 20, 8.0, 8.0, 1.0, *[1.0] * 8])
    assert done == [Action.ROLL_BACK, Action.SPEED_UP]
    assert judge.back_off == FIRST_FACTOR


def test_too_many_skips_go_back_then_further_back_then_stop_or_give_way():
    for finite, last in ((False, Action.STOP), (True, Action.GIVE_WAY)):
        ring = Ring()
        judge = recovery(ring)
        for step in (0, 10, 20):
            judge.consider(at(step))
        assert judge.consider(at(23, skips=2, finite=finite)) is Action.NOTHING
        seen = []
        for step in (24, 30, 36):
            assert judge.consider(at(step, skips=3, finite=finite)) is Action.ROLL_BACK
            seen.append((judge.reason, judge.back_off, list(ring.kept)))
        assert seen == [
            ("too_many_skips", FIRST_FACTOR, [0, 10, 20]),
            ("too_many_skips", NEXT_FACTOR, [0, 10, 20]),
            ("too_many_skips", NEXT_FACTOR, [0, 10]),  # the last attempt goes to an older one
        ]
        assert judge.consider(at(40, skips=3, finite=finite)) is last
        assert judge.reason == "too_many_rollbacks"


def test_rollbacks_are_counted_anew_after_a_recovery():
    ring = Ring()
    judge = recovery(ring, max_rollbacks=1)
    for start in (0, 100, 200):
        judge.consider(at(start))
        judge.consider(at(start + 10))
        assert judge.consider(at(start + 14, skips=3)) is Action.ROLL_BACK
        assert judge.rollbacks == 1


def test_where_going_back_would_change_nothing_an_older_one_is_taken_or_it_stops():
    ring = Ring()
    ring.current = True
    judge = recovery(ring)
    judge.consider(at(0))
    judge.consider(at(10))
    assert judge.consider(at(14, skips=3, finite=False)) is Action.ROLL_BACK
    assert ring.kept == [0]
    assert judge.consider(at(18, skips=3, finite=False)) is Action.STOP
    assert judge.reason == "too_many_skips"


@pytest.mark.parametrize("ring", [None, Ring()], ids=["no ring", "empty ring"])
def test_without_a_snapshot_too_many_skips_stop_it(ring):
    assert recovery(ring).consider(at(5, skips=3)) is Action.STOP


@pytest.mark.parametrize("thoroughly", [False, True])
def test_a_weight_that_is_not_finite_sends_back_when_a_snapshot_is_due_or_it_is_looked_at(thoroughly):
    ring = Ring()
    judge = recovery(ring)
    judge.consider(at(0))
    ring.finite = False
    expected = Action.ROLL_BACK if thoroughly else Action.NOTHING
    assert judge.consider(at(4), thoroughly=thoroughly) is expected
    if not thoroughly:
        assert judge.consider(at(10)) is Action.ROLL_BACK
    assert judge.reason == "nonfinite_weights"
    assert ring.kept == [0]


def by_the_rules(losses_at):
    """Say at each check, in plain numpy, whether the training is lost."""
    beginning, best, verdicts = None, np.inf, []
    for losses in losses_at:
        if len(losses) < RECENT:
            verdicts.append(False)
            continue
        if beginning is None:
            beginning = np.median(losses[:BEGINNING])
            beginning = beginning if beginning > 0 else np.inf
        recent = np.median(losses[-RECENT:])
        best = min(best, recent)
        learned = 0 <= best <= LEARNED * beginning
        verdicts.append(bool(recent >= (LOST_SHARE if learned else DIVERGED) * beginning))
        if verdicts[-1]:
            break
    return verdicts


levels = st.lists(st.floats(-2.0, 8.0, width=32), min_size=1, max_size=6)


@given(levels=levels, seed=st.integers(0, 999))
def test_a_training_is_lost_when_the_docstring_says_so(levels, seed):
    noise = np.random.default_rng(seed).normal(0, 0.05, 24 * len(levels))
    losses = (np.repeat(levels, 24) + noise).astype(np.float32)
    windows = [losses[max(0, end - 128) : end] for end in range(8, len(losses) + 1, 8)]
    ring = Ring()
    ring.kept = [0]
    judge, found = recovery(ring, every=10**9), []
    judge._last_kept = 0
    for number, window in enumerate(windows):
        action = judge.consider(at(8 * number, losses=window))
        found.append(action is Action.ROLL_BACK)
        if found[-1]:
            assert judge.reason == "training_lost"
            break
    assert found == by_the_rules(windows)


def test_a_new_level_that_was_given_way_to_is_the_level():
    ring = Ring()
    judge = recovery(ring, every=10**9)
    low, high = np.full(RECENT, 1.0), np.full(RECENT, 5.0)
    judge.consider(at(0, losses=low))
    assert judge.consider(at(8, losses=high)) is Action.ROLL_BACK
    judge.forget_level()
    assert judge.consider(at(16, losses=high)) is Action.NOTHING


class Masked(keras.layers.Layer):
    """Hold a kernel, a statistic, and a mask that is not finite from the beginning."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), initializer="ones")
        self.statistic = self.add_weight(shape=(4,), initializer="ones", trainable=False)
        self.mask = self.add_weight(shape=(4,), initializer=keras.initializers.Constant(-np.inf), trainable=False)

    def call(self, inputs):
        return inputs @ self.kernel


@pytest.fixture
def layer():
    return Masked()


@pytest.fixture
def growth(layer):
    model = keras.Sequential([keras.Input((4,)), layer])
    growth = WeightGrowth(model)
    growth.begin()
    return growth


@pytest.mark.parametrize(
    ("times", "far", "finite"),
    [
        (1.0, False, True),
        (1.9, False, True),
        (0.0, False, True),
        (2.1, True, True),
        (1e30, True, True),
        (np.nan, True, False),
        (np.inf, True, False),
    ],
)
def test_weights(growth, layer, times, far, finite):
    layer.kernel.assign(times * np.ones((4, 4), "float32"))
    assert (growth.moved_far(), growth.state_is_finite()) == (far, finite)


def test_a_statistic_that_is_not_finite(growth, layer):
    layer.statistic.assign([1.0, 1.0, np.nan, 1.0])
    assert growth.moved_far() and not growth.state_is_finite()


def test_small_growth_adds_up_until_it_is_accepted_and_shrinking_counts(growth, layer):
    found = []
    for norm in (1.5, 2.2, 2.2):
        layer.kernel.assign(norm * np.ones((4, 4), "float32"))
        found.append(growth.moved_far())
    growth.accept()
    for norm in (4.0, 1.0, 2.1):
        layer.kernel.assign(norm * np.ones((4, 4), "float32"))
        found.append(growth.moved_far())
    assert found == [False, True, True, False, False, True]


def test_what_was_never_measured_has_moved_far(layer):
    growth = WeightGrowth(keras.Sequential([keras.Input((4,)), layer]))
    assert growth.moved_far()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype):
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(400, dtype=dtype)])
    growth = WeightGrowth(model)
    growth.begin()
    model.layers[0].kernel.assign(np.full((400, 400), 300.0))  # whose squares float16 does not hold
    assert growth.moved_far() and growth.state_is_finite()
    growth.accept()
    assert not growth.moved_far()
