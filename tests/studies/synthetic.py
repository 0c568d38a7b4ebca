"""A study whose runs cost nothing: outcomes by rule, for everything that is not about training."""

from __future__ import annotations

import numpy as np

from gradrecipes.studies import Run, Study

X, Y = np.arange(20.0)[:, None], np.arange(20.0)


def build(level=0.0, spread=1.0, diverges=0.0):
    raise AssertionError("nothing is built here")


class Trainer:
    """Hand out outcomes by rule: the level of the arm, some noise by arm and seed, and more by seed alone."""

    def __init__(self):
        self.calls = []

    def run(self, name, arm, seed):
        self.calls.append((name, seed))
        level, spread, diverges = (arm.build.get(key, default) for key, default in DEFAULTS.items())
        own = np.random.default_rng([seed, sum(name.encode())])
        value = level + spread * own.normal() + np.random.default_rng(seed).normal()
        lost = own.uniform() < diverges
        history = {"loss": [1.0, float("nan") if lost else 0.5], "val_score": [value - 1, value]}
        return Run(name, seed, history, diverged="the loss is nan in epoch 2" if lost else None, seconds=0.5)


DEFAULTS = {"level": 0.0, "spread": 1.0, "diverges": 0.0}


def study(arms, *, seeds=5, objective=None, **how):
    """Return a study on synthetic outcomes; its trainer counts the calls."""
    from gradrecipes.studies import Objective

    made = Study(
        build, arms=arms, data=(X, Y), seeds=seeds, objective=objective or Objective("val_score", "max"), **how
    )
    made._trainer = Trainer()
    return made
