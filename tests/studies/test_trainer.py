"""The numbers of a study are those of separate fits, to the bit, whether a step was used again or not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.studies.arm import Arm, Objective
from gradrecipes.studies.split import Split
from gradrecipes.studies.trainer import PLAIN_OPTIMIZERS, Trainer
from tests.training.nets import NETS, compiled, digits, with_state

layers, optimizers = keras.layers, keras.optimizers
X, Y = digits(120)
SPLIT = Split.of((X[:80], Y[:80], X[80:], Y[80:]))
FIT = {"epochs": 2, "batch_size": 32}


def plain(make, arm, seed, fit=FIT, split=SPLIT):
    """Return the history and the weights of one fit, as one would write it without a study."""
    keras.utils.set_random_seed(seed)
    model = make(**arm)
    arguments = {**fit, "callbacks": fit["callbacks"]() if "callbacks" in fit else None}
    validation = (split.x_val, split.y_val)
    history = model.fit(split.x, split.y, validation_data=validation, verbose=0, **arguments).history
    return history, model.get_weights()


def assert_study_and_loop_agree(make, arms=({},), *, fit=FIT, seeds=(0, 1), split=SPLIT):
    """Assert that all numbers agree; return the runs."""
    trained = []
    watched = {**fit, "callbacks": lambda: [*(fit["callbacks"]() if "callbacks" in fit else []), Keep(trained)]}
    trainer = Trainer(make, split=split, fit=watched, objective=Objective.named("val_loss"))
    runs = [trainer.run(str(arm), Arm(build=arm), seed) for seed in seeds for arm in arms]
    expected = [plain(make, arm, seed, fit, split) for seed in seeds for arm in arms]
    for run, weights, (history, others) in zip(runs, trained, expected, strict=True):
        assert list(run.history.values()) == list(history.values())
        for mine, theirs in zip(weights, others, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    return runs


class Keep(keras.callbacks.Callback):
    """Keep the weights with which each training ended."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def on_train_end(self, logs=None):
        self.kept.append(self.model.get_weights())


def stateful(rate=0.01, *, optimizer="Adam", initializer="glorot_uniform", **how):
    """Return a net with BatchNorm and Dropout."""
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(16, activation="relu", kernel_initializer=initializer),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )
    return compiled(model, getattr(optimizers, optimizer)(rate, **how))


@pytest.mark.slow
def test_a_rate_or_an_initializer_is_no_reason_for_another_trace_and_a_bound_is():
    arms = ({}, {"rate": 0.1, "initializer": "he_normal"}, {"clipnorm": 0.5})
    runs = assert_study_and_loop_agree(stateful, arms, seeds=(0, 7))
    assert [run.reused for run in runs] == [False, True, False, True, True, True]


def scheduled():
    decay = optimizers.schedules.CosineDecay(0.0, 6, warmup_target=0.1, warmup_steps=2)
    return compiled(with_state(), optimizers.SGD(decay, momentum=0.9, nesterov=True))


def accumulated():
    return compiled(with_state(), optimizers.Adam(0.01, gradient_accumulation_steps=2, use_ema=True))


def mixed():
    net = keras.Sequential(
        [keras.Input((64,)), layers.Dense(16, "relu", dtype="mixed_float16"), layers.Dense(10, dtype="float32")]
    )
    return compiled(net, optimizers.LossScaleOptimizer(optimizers.Adam(0.01)))


def compiled_by_xla():
    return compiled(with_state(), jit_compile=True)


def several_steps_at_once():
    return compiled(with_state(), steps_per_execution=2)


def with_metrics():
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(k=3)]
    return compiled(with_state(), metrics=metrics, weighted_metrics=["accuracy"])


MAKES = [scheduled, accumulated, mixed, compiled_by_xla, several_steps_at_once, with_metrics]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
@pytest.mark.slow
def test_schedules_slots_scales_and_metrics_begin_anew(make):
    fit = {**FIT, "batch_size": 40} if make is compiled_by_xla else FIT  # which compiles each size of a batch
    runs = assert_study_and_loop_agree(make, fit=fit)
    assert [run.reused for run in runs] == [False, True]


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(PLAIN_OPTIMIZERS - {"LossScaleOptimizer", "Adam"}))
def test_every_optimizer_whose_slots_are_known_to_be_plain(name):
    runs = assert_study_and_loop_agree(stateful, ({"optimizer": name},))
    assert [run.reused for run in runs] == [False, True]


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NETS if name not in ("with_state", "two_dense")])
def test_every_kind_of_net(name):
    def make():
        return compiled(NETS[name]())

    runs = assert_study_and_loop_agree(make)
    assert runs[1].reused == (name != "subclassed")  # which counts in Python how often it was called
    assert name != "subclassed" or "python_calls" in runs[1].note


def test_what_cannot_be_put_back_is_built_and_traced_anew_and_said():
    def noisy():
        inputs = keras.Input((64,))
        noise = layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x), stddev=0.1))(inputs)
        return compiled(keras.Model(inputs, layers.Dense(10)(noise)))

    runs = assert_study_and_loop_agree(noisy)
    assert not any(run.reused for run in runs)
    assert all("RandomStandardNormal" in run.note for run in runs)


def test_an_optimizer_whose_slots_are_not_known_is_not_used_again():
    class Own(optimizers.SGD):
        """Might begin with anything."""

    runs = assert_study_and_loop_agree(lambda: compiled(with_state(), Own(0.1)))
    assert not any(run.reused for run in runs) and "Own" in runs[0].note


def test_callbacks_act_on_each_run_alone():
    fit = {
        **FIT,
        "epochs": 4,
        "callbacks": lambda: [keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9)],
    }
    runs = assert_study_and_loop_agree(stateful, fit=fit)
    assert runs[1].reused
    assert runs[1].history["learning_rate"][0] == pytest.approx(0.01)
    assert runs[1].history["learning_rate"][-1] < 0.01


def test_a_callback_that_changes_the_model_spoils_it_for_the_next_run():
    class Freeze(keras.callbacks.Callback):
        """Freezes a layer for good."""

        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[0].trainable = False

    runs = assert_study_and_loop_agree(stateful, fit={**FIT, "callbacks": lambda: [Freeze()]})
    assert not runs[1].reused and "trainable" in runs[1].note


@pytest.mark.slow
def test_with_a_guard_the_numbers_are_those_of_a_guarded_fit():
    fit = {**FIT, "callbacks": lambda: [gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))]}
    assert_study_and_loop_agree(stateful, fit=fit)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"shuffle": False}, marks=pytest.mark.slow),
        pytest.param({"batch_size": 40}, marks=pytest.mark.slow),
        {"class_weight": dict.fromkeys(range(10), 0.5)},
    ],
)
def test_other_ways_of_feeding(how):
    assert_study_and_loop_agree(stateful, fit={**FIT, **how}, seeds=(0,))


@pytest.mark.slow
def test_another_batch_size_is_another_trace():
    trainer = Trainer(stateful, split=SPLIT, fit=FIT, objective=Objective.named("val_loss"))
    arms = [Arm(), Arm(fit={"batch_size": 40}), Arm(), Arm(fit={"batch_size": 40})]
    runs = [trainer.run(f"{place % 2}", arm, place // 2) for place, arm in enumerate(arms)]
    assert [run.reused for run in runs] == [False, False, True, True]
    expected = [plain(stateful, {}, place // 2, {**FIT, **arm.fit})[0] for place, arm in enumerate(arms)]
    assert [list(run.history.values()) for run in runs] == [list(history.values()) for history in expected]


@pytest.mark.slow
def test_test_data_are_evaluated_and_disturb_nothing():
    split = Split.of(
        (X[:60], Y[:60], X[60:92], Y[60:92], X[92:], Y[92:])
    )  # full batches to validate by, others to test
    trainer = Trainer(stateful, split=split, fit=FIT, objective=Objective.named("test_loss"))
    for run in (trainer.run("a", Arm(), seed) for seed in (0, 1)):
        keras.utils.set_random_seed(run.seed)
        model = stateful()
        validation = (split.x_val, split.y_val)
        history = model.fit(split.x, split.y, validation_data=validation, verbose=0, **FIT).history
        assert list(run.history.values()) == list(history.values())
        scores = model.evaluate(split.x_test, split.y_test, batch_size=32, verbose=0, return_dict=True)
        assert run.test == {f"test_{name}": value for name, value in scores.items()}


@pytest.mark.slow
def test_data_that_are_float64_or_in_a_dictionary():
    def make():
        inputs = {name: keras.Input((64,), name=name) for name in ("a", "b")}
        return compiled(keras.Model(inputs, layers.Dense(10)(layers.Add()(list(inputs.values())))))

    x = {"a": X.astype(float), "b": 1 - X}
    split = Split.of(({n: v[:80] for n, v in x.items()}, Y[:80], {n: v[80:] for n, v in x.items()}, Y[80:]))
    assert_study_and_loop_agree(make, split=split)


def test_a_run_that_diverges_ends_early_and_leaves_the_next_one_alone():
    trainer = Trainer(stateful, split=SPLIT, fit={**FIT, "epochs": 5}, objective=Objective.named("val_loss"))
    lost = trainer.run("a", Arm(build={"rate": 1e30}), 0)
    assert lost.diverged and len(lost.history["loss"]) < 5
    sound = trainer.run("a", Arm(), 1)
    assert sound.diverged is None and sound.reused
    assert list(sound.history.values()) == list(plain(stateful, {}, 1, {**FIT, "epochs": 5})[0].values())


def test_an_error_of_the_numbers_is_a_divergence_and_any_other_is_an_error():
    class RaiseOnNaN(keras.callbacks.Callback):  # as TerminateOnNaN(raise_error=True) does, which Keras 3.7 lacks
        def on_train_batch_end(self, batch, logs=None):
            if not np.isfinite(logs["loss"]):
                raise RuntimeError(f"NaN or Inf loss encountered at batch {batch}.")

    fit = {**FIT, "callbacks": lambda: [RaiseOnNaN()]}
    trainer = Trainer(stateful, split=SPLIT, fit=fit, objective=Objective.named("val_loss"))
    lost = trainer.run("a", Arm(build={"rate": 1e30}), 0)
    assert "NaN" in lost.diverged and lost.history == {}
    assert trainer.run("a", Arm(), 1).diverged is None
    with pytest.raises(TypeError, match="unexpected keyword"):
        trainer.run("a", Arm(fit={"epoch": 3}), 2)


@pytest.mark.slow
def test_the_guards_verdict_counts():
    fit = {**FIT, "callbacks": lambda: [gr.GradientGuard(max_consecutive_skips=1, snapshot_every=None)]}
    x = X.copy()
    x[:80] = np.nan
    split = Split.of((x[:80], Y[:80], X[80:], Y[80:]))
    run = Trainer(stateful, split=split, fit=fit, objective=Objective.named("val_loss")).run("a", Arm(), 0)
    assert run.diverged == "the guard stopped it: too_many_skips"
