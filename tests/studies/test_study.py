"""What a study keeps, repeats, gives up and says; outcomes are synthetic, trainings are in test_trainer.py."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.studies import Arm, Objective, Run, Split, frozen_split
from gradrecipes.studies.arm import check_fit
from tests.studies.synthetic import X, Y, build, study

CLEAR = {"low": {"level": 0.0, "spread": 0.1}, "high": {"level": 2.0, "spread": 0.1}}


def test_every_arm_meets_every_seed_in_turn():
    made = study(CLEAR, seeds=[3, 1, 4]).run(give_up=False)
    assert made._trainer.calls == [(arm, seed) for seed in (3, 1, 4) for arm in CLEAR]
    assert [run.seed for run in made.runs["low"]] == [3, 1, 4]
    assert made.best == "high"


# -- keeping ---------------------------------------------------------------------------------------
def test_a_second_study_in_the_same_directory_repeats_nothing_and_says_the_same(tmp_path):
    first = study(CLEAR, directory=tmp_path).run()
    second = study(CLEAR, directory=tmp_path).run()
    assert second._trainer.calls == []
    assert str(second) == str(first) and second.to_dict() == first.to_dict()


def test_more_seeds_and_more_arms_cost_only_themselves(tmp_path):
    study(CLEAR, directory=tmp_path, seeds=3).run(give_up=False)
    more = study({**CLEAR, "new": {}}, directory=tmp_path, seeds=4).run(give_up=False)
    assert sorted(more._trainer.calls) == [("high", 3), ("low", 3), ("new", 0), ("new", 1), ("new", 2), ("new", 3)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_had_ended_when_it_was_broken_off_is_kept(tmp_path, error):
    made = study(CLEAR, directory=tmp_path, seeds=3)
    run = made._trainer.run

    def breaking(name, arm, seed):
        if (name, seed) == ("high", 1):
            raise error
        return run(name, arm, seed)

    made._trainer.run = breaking
    with pytest.raises(error):
        made.run()
    assert [len(runs) for runs in made.runs.values()] == [2, 1]
    assert "low" in str(made.table())
    again = study(CLEAR, directory=tmp_path, seeds=3).run(give_up=False)
    assert again._trainer.calls == [("high", 1), ("low", 2), ("high", 2)]
    assert not list(tmp_path.rglob("*.part"))


def test_results_of_other_settings_are_refused_with_what_changed(tmp_path):
    study(CLEAR, directory=tmp_path).run()
    with pytest.raises(ValueError, match="other settings: arm changed"):
        study({"low": {"level": 0.5}}, directory=tmp_path)
    with pytest.raises(ValueError, match="other settings: fit changed"):
        study(CLEAR, directory=tmp_path, fit={"epochs": 3})
    made = gr.Study(build, arms=CLEAR, data=(X, Y), directory=tmp_path, objective="val_loss")  # read, not run
    assert len(made.runs["low"]) == 5
    with pytest.raises(ValueError, match="other settings: data changed"):
        gr.Study(build, arms=CLEAR, data=(X + 1, Y), directory=tmp_path)


def test_a_file_that_was_damaged_is_named(tmp_path):
    study(CLEAR, directory=tmp_path).run()
    path = next(tmp_path.rglob("low*.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"low.*cannot be read.*Remove it"):
        study(CLEAR, directory=tmp_path)


def test_names_that_no_file_can_have_are_kept_apart(tmp_path):
    arms = {"a/b": {}, "a b": {"level": 1.0}, "α": {"level": 2.0}, "β": {"level": 3.0}}
    study(arms, directory=tmp_path, seeds=2).run()
    again = study(arms, directory=tmp_path, seeds=2).run()
    assert again._trainer.calls == [] and len(list(tmp_path.rglob("*.json"))) == 8


# -- giving up -------------------------------------------------------------------------------------
def test_an_arm_that_always_diverges_gets_three_seeds():
    made = study({"lost": {"diverges": 1.0}, "sound": {}, "other": {}}, seeds=6).run()
    assert [len(runs) for runs in made.runs.values()] == [3, 6, 6]
    assert "no hope, diverged with each of 3 seeds" in str(made)
    assert len(study({"lost": {"diverges": 1.0}, "sound": {}}, seeds=6).run(give_up=False).runs["lost"]) == 6


def test_an_arm_far_behind_is_given_up_and_a_resumed_study_decides_the_same(tmp_path):
    arms = {"bad": {"level": -500.0}, "good": {}, "also good": {"level": 0.1}}
    made = study(arms, seeds=8, directory=tmp_path).run()
    assert 3 <= len(made.runs["bad"]) < 8 and len(made.runs["good"]) == 8
    again = study(arms, seeds=8, directory=tmp_path).run()
    assert again._trainer.calls == [] and again.given_up() == made.given_up()


def test_nothing_is_given_up_where_nothing_is_clear():
    made = study({"a": {}, "b": {"level": 0.5}, "c": {"diverges": 0.5}}, seeds=6).run()
    assert [len(runs) for runs in made.runs.values()] == [6, 6, 6]


# -- saying ----------------------------------------------------------------------------------------
def test_strict_json_holds_all_of_it():
    made = study({"lost": {"diverges": 1.0}, "sound": {}}).run()
    content = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert content["best"] == "sound" and content["seeds"] == [0, 1, 2, 3, 4]
    assert content["arms"][0]["values"]["0"] == "nan" and len(content["runs"]) == 8
    run = Run.from_dict(content["runs"][0])
    assert math.isnan(run.history["loss"][-1]) and run.diverged


def test_the_table_shows_itself_as_text_and_as_html():
    table = study({"<lost>": {"diverges": 1.0}, "sound": {"level": 1.0}}).run().table()
    assert "<lost>" in str(table) and "&lt;lost&gt;" in table._repr_html_()
    assert [row["verdict"] for row in table.rows] == ["no hope: diverged with each of 3 seeds", "best so far"]


def test_two_arms_are_compared_from_the_side_that_is_asked():
    made = study({"low": {}, "high": {"level": 1.5}}, seeds=6).run()
    ahead = made.compare("high", "low")
    assert ahead.difference > 0 and made.compare("low", "high").difference == -ahead.difference
    for one, other in (("high", "high"), ("high", "lower")):
        with pytest.raises(ValueError, match="two different arms"):
            made.compare(one, other)


def test_before_any_run_there_is_nothing_to_say():
    made = study(CLEAR)
    assert made.best is None and "No run" in str(made)
    assert made.to_dict()["runs"] == []


def test_progress_goes_to_standard_error_only(capsys):
    study({"[a]": {}, "lost": {"diverges": 1.0}}).run(progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "10/10" in shown.err
    study(CLEAR).run()
    assert capsys.readouterr() == ("", "")


# -- what is given -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"arms": {}}, ValueError, "at least one arm"),
        ({"arms": {"a": 3}}, TypeError, "a dictionary of arguments"),
        ({"seeds": 0}, ValueError, "how many, at least 1"),
        ({"seeds": [1, 1]}, ValueError, "different whole numbers"),
        ({"seeds": True}, ValueError, "how many"),
        ({"data": (X,)}, TypeError, "of length 1"),
        ({"data": (X, Y[:3])}, ValueError, "same number of samples"),
        ({"data": (X, Y, X, Y, X, None)}, ValueError, "both inputs and targets"),
        ({"data": (iter(X), Y)}, TypeError, "must be arrays"),
        ({"fit": {"validation_split": 0.1}}, ValueError, "validation_split"),
        ({"fit": {"callbacks": []}}, TypeError, "must be a function"),
        ({"objective": "val_something"}, ValueError, "more or less"),
        ({"objective": "score"}, ValueError, "cannot be told"),
    ],
)
def test_what_cannot_be_a_study_is_refused_in_words(arguments, error, words):
    with pytest.raises(error, match=words):
        gr.Study(build, **{"arms": CLEAR, "data": (X, Y), **arguments})
    with pytest.raises(TypeError, match="must be a function"):
        gr.Study("build", arms=CLEAR, data=(X, Y))


@pytest.mark.parametrize("workers", [0, 1.5, True])
def test_workers_are_counted(workers):
    with pytest.raises(ValueError, match="at least 1"):
        study(CLEAR).run(workers=workers)


def test_a_metric_that_no_run_has_is_named_with_those_there_are():
    made = study(CLEAR, objective=Objective("val_f1", "max"))
    with pytest.raises(KeyError, match="val_score"):
        made.run()


def test_the_direction_follows_from_the_name():
    assert Objective.named("val_loss").direction == Objective.named("val_mean_squared_error").direction == "min"
    assert Objective.named("val_accuracy").direction == Objective.named("test_auc").direction == "max"
    for wrong in ({"direction": "up"}, {"direction": "max", "epoch": "first"}):
        with pytest.raises(ValueError, match="must be one of"):
            Objective("val_loss", **wrong)
    best = Objective("val_loss", "min", epoch="best")
    assert best.of({"val_loss": [3.0, 1.0, math.nan]}, {}) == 1.0
    assert math.isnan(Objective.named("val_loss").of({"val_loss": [3.0, math.nan]}, {}))


def test_a_split_is_frozen_and_whole():
    split = frozen_split({"a": X, "b": X[:, 0]}, list(Y), share=0.25)
    assert len(split.y) == 15 and len(split.y_val) == 5
    assert sorted([*split.y, *split.y_val]) == list(Y)
    np.testing.assert_array_equal(split.x["b"], split.y)
    assert split.fingerprint == frozen_split({"a": X, "b": X[:, 0]}, Y, share=0.25).fingerprint
    assert split.fingerprint != frozen_split({"a": X, "b": X[:, 0]}, Y, share=0.25, seed=1).fingerprint
    with pytest.raises(ValueError, match="samples on both sides"):
        frozen_split(X, Y, share=1.0)
    assert Split.of(split) is split


# -- recipes as arms -----------------------------------------------------------------------------------
def plain_net(recipe=None):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **(recipe.compile_arguments() if recipe else {})})
    return model


def without_recipe():
    return plain_net()


def test_a_recipe_reaches_build_and_fit():
    arm = Arm.of(gr.recipes.training(learning_rate=0.25, batch_size=8) + gr.recipes.validation(share=0.3))
    assert float(arm.model(plain_net).optimizer.learning_rate) == 0.25
    arguments = arm.fit_arguments({"epochs": 2, "callbacks": lambda: [keras.callbacks.TerminateOnNaN()]})
    assert arguments["batch_size"] == 8 and "validation_split" not in arguments
    assert [type(one).__name__ for one in arguments["callbacks"]] == [
        *("GradientGuard", "NanProofEarlyStopping", "TerminateOnNaN"),
    ]
    with pytest.raises(TypeError, match=r"optimizer.*must take an argument `recipe`"):
        arm.model(without_recipe)
    assert Arm.of(gr.recipes.monitoring()).model(without_recipe).compiled


def test_build_has_to_return_a_compiled_model():
    with pytest.raises(TypeError, match="must return a compiled Keras model"):
        Arm().model(lambda: None)
    with pytest.raises(ValueError, match=r"Call model\.compile"):
        Arm().model(lambda: keras.Sequential([keras.layers.Dense(1)]))
    check_fit({"epochs": 2, "callbacks": list})
