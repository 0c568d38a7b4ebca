"""What a result is known by: the same for the same thing, another for another."""

from __future__ import annotations

import functools
import json

import keras
import numpy as np

import gradrecipes as gr
from gradrecipes.studies.arm import Arm
from gradrecipes.studies.study_runs import describe, fingerprint


def made(text):
    """Return a function whose source no file holds."""
    names = {}
    exec(text, names)
    return names["build"]


BUILD = made("def build(): return [x * 2 for x in (1, 2)]")


def digest(build=BUILD, arm=None, fit=None, data="d"):
    return fingerprint(build, arm or Arm(), fit=fit or {}, data=data)[0]


def test_functions_without_a_file_are_told_by_their_code():
    assert digest() == digest(made("\n\ndef build(): return [x * 2 for x in (1, 2)]"))
    assert digest() != digest(made("def build(): return [x * 3 for x in (1, 2)]"))
    assert digest() != digest(made("def build(): return [x * 2 for x in (1, 3)]"))
    assert digest(len) != digest()


def test_arms_are_told_by_their_settings():
    arms = [
        Arm(build={"rate": 0.1}),
        Arm(build={"rate": 0.2}),
        Arm(fit={"rate": 0.1}),
        Arm(fit={"callbacks": lambda: []}),
        Arm(recipe=gr.recipes.training(max_norm=1.0)),
        Arm(recipe=gr.recipes.training(max_norm=2.0)),
        Arm(build={"initializer": keras.initializers.HeNormal(seed=1)}),
        Arm(build={"initializer": keras.initializers.HeNormal(seed=2)}),
        Arm(recipe=gr.recipes.training(learning_rate=0.1, warm_up=10)),
        Arm(recipe=gr.recipes.training(learning_rate=0.1, warm_up=20)),
        Arm(build={"table": np.arange(40)}),
        Arm(build={"table": np.arange(40) + 1}),
    ]
    digests = [digest(arm=arm) for arm in arms]
    assert len(set(digests)) == len(arms)
    assert digest(arm=Arm(recipe=gr.recipes.training(max_norm=1.0))) == digests[4]
    assert digest(arm=Arm(build={"initializer": keras.initializers.HeNormal(seed=1)})) == digests[6]
    assert len({digest(), digest(fit={"epochs": 2}), digest(data="e")}) == 3


def test_everything_becomes_plain_json():
    class Odd:
        """Has a configuration that fails."""

        def get_config(self):
            raise NotImplementedError

        def __repr__(self):
            return "<Odd at 0x7f0000000000>"

    things = [Odd(), functools.partial(len, "a"), np.float32(0.5), float("inf"), (1, {2}), keras.layers.Dense, b"x"]
    told = json.dumps(describe(things), allow_nan=False)
    assert "0x7f" not in told and '"inf"' in told and "0.5" in told
