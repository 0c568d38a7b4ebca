from dataclasses import replace

import keras
import numpy as np
import pytest

from gradrecipes.rescue.arm import Arm, _mean_and_error, graph_of
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.feed import read_feed
from gradrecipes.rescue.lab import LIVE_SMALL_MODELS, Journal, Lab, OutOfBudgetError
from gradrecipes.rescue.original import Setup, read_original, setup_of
from gradrecipes.rescue.rebuild import rebuild
from gradrecipes.rescue.task import task_of

X = np.random.default_rng(0).normal(size=(128, 4)).astype("float32")
Y = X.sum(axis=1)


@pytest.fixture(scope="module")
def parts():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dropout(0.2), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    feed, _ = read_feed(X, Y, batch_size=16, validation_data=(X, Y))
    base = replace(setup_of(model, None, batch_size=16, epochs=2), head="linear", units=1)
    original, scaling = read_original(model), scaling_of(X, Y, (False,))
    task = task_of(feed, base)
    return base, {
        "build": lambda setup, seed: rebuild(original, base, setup, scaling=scaling, seed=seed),
        "feed": feed,
        "task": task,
    }


def test_arms_that_take_turns_on_one_traced_model_train_as_if_alone(parts):
    base, arguments = parts
    setups = [(base, 0), (replace(base, rate_factor=0.1), 0), (replace(base, initializers="fitting"), 1)]
    alone = [Arm(setup, seed, **arguments).train(10).score.value for setup, seed in setups]
    stages = {}
    shared = [Arm(setup, seed, stages=stages, **arguments) for setup, seed in setups]
    for arm in shared:
        arm.train(4)
    assert len(stages) == 1
    assert [arm.train(10).score.value for arm in shared] == pytest.approx(alone, abs=1e-6)


def test_a_graph_of_its_own_is_not_shared(parts):
    base, _ = parts
    assert graph_of(base) == graph_of(replace(base, learning_rate=1.0))
    assert graph_of(base) != graph_of(replace(base, clipping=("clipnorm", "1.0")))
    assert graph_of(replace(base, warm_up=5)) != graph_of(replace(base, warm_up=5, rate_factor=0.1))
    assert graph_of(replace(base, guard=True)) is None


def test_a_score_after_fewer_steps_is_not_that_of_an_arm_trained_further(parts):
    base, arguments = parts
    feed, task, build = (arguments[name] for name in ("feed", "task", "build"))
    one, other = (Lab(base, feed, task, build, Journal(None, ""), 1000, lambda words: None) for _ in range(2))
    early = one.run((), share=0.25).score.value
    other.run((), share=1.0)
    assert other.run((), share=0.25).score.value == pytest.approx(early, abs=1e-6)


@pytest.mark.parametrize(
    ("losses", "declines"), [([9, 4, 3, 2, 1], True), ([9, 4, 3, 2, 2.5], False), ([3, 2, 1], False)]
)
def test_a_loss_declines_if_four_epochs_in_a_row_are_each_below_the_one_before(parts, losses, declines):
    base, arguments = parts
    arm = Arm(base, 0, **arguments)
    batches = np.array(losses)[:, None] + np.tile([5.0, -5.0], 4)  # 8 batches in an epoch
    assert arm._declines(batches.ravel()) is declines


def test_a_trial_that_would_exceed_the_limit_is_not_begun(parts):
    base, arguments = parts
    feed, task, build = (arguments[name] for name in ("feed", "task", "build"))
    lab = Lab(base, feed, task, build, Journal(None, ""), 12, lambda words: None, limit=12)
    lab.run((), share=0.5)  # 8 of 16 steps
    with pytest.raises(OutOfBudgetError):
        lab.run((), share=1.0)
    lab.run((), share=0.75)  # 4 more, for the first 8 are trained
    assert lab.spent == 12
    lab.run((), share=0.5)  # known
    with pytest.raises(OutOfBudgetError):
        lab.run((), seed=1, share=0.1)
    assert lab.spent == 12


def test_targets_that_are_not_finite_break_a_training_that_does_not_skip_them(parts):
    base, arguments = parts
    y = np.where(np.arange(128) % 16 == 0, np.inf, Y).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mae")  # of which the gradient stays finite

    def build(setup, seed):
        return rebuild(read_original(model), base, setup, scaling=scaling_of(X, y, (False,)), seed=seed)

    feed, _ = read_feed(X, y, batch_size=16, validation_data=(X, Y))
    base = setup_of(model, None, batch_size=16, epochs=2)
    task = replace(arguments["task"], x=X, y=Y)
    plain, guarded = (
        Arm(replace(base, guard=guard), 0, build=build, feed=feed, task=task).train(16) for guard in (False, True)
    )
    assert plain.broken is not None
    assert guarded.broken is None
    assert np.isfinite(guarded.loss)


def test_losses_of_skipped_steps_are_no_spread():
    losses = np.array([0.9, 1.0, 1.1, 1e38, 1.0])
    mean, error = _mean_and_error(losses, skipping=True)
    assert (mean, 0.0 < error < 0.1) == (1.0, True)
    assert _mean_and_error(losses, skipping=False)[1] > 1e37
    assert _mean_and_error(losses[:0], skipping=True)[1] == 0.0


def test_the_training_as_it_is_is_kept_for_all_that_is_compared_with_it():
    setup = Setup(batch_size=32, epochs=1)
    lab = Lab(setup, read_feed(np.ones((9, 1)), np.ones(9), batch_size=9)[0], None, None, None, 100, None)
    for name in ("", *"abcdefghijkl"):
        lab._arm((name,) if name else (), setup, 0, 10)
        lab._values[(name,) if name else (), 0] = -1.0 if not name or name == "e" else 0.5
    assert ((), 0) in lab._arms and (("e",), 0) not in lab._arms
    assert len(lab._arms) == LIVE_SMALL_MODELS
