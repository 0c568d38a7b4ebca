"""What is known of trials beside their scores: the files in their folders, and the curves that later trials face."""

from __future__ import annotations

import numpy as np

from gradrecipes.core.analysis.search_trial import Failure
from gradrecipes.tuning.records import Outcome, plain, read_curves, read_json, read_outcome, write_outcome


def test_an_outcome_comes_back_as_it_was(tmp_path):
    outcome = Outcome(steps=12, values=[0.5, np.nan], before=[0.9], first_epoch=1, worker="one")
    outcome.fail(Failure("diverging_loss", 3, 12, 40.0))
    write_outcome(tmp_path / "trial_0", outcome)
    back = read_outcome(tmp_path / "trial_0")
    assert back.values == [0.5, None] and back.curve == [0.9, 0.5, None]
    assert (back.status, back.steps, back.failure.cause) == ("failed", 12, "diverging_loss")
    assert read_outcome(tmp_path / "trial_1") is None


def test_later_trials_face_whole_curves_of_trials_that_did_not_fail(tmp_path):
    failed = Outcome(values=[9.0])
    failed.fail(Failure("nonfinite_loss"))
    outcomes = [
        Outcome(values=[0.9, 0.8]),
        Outcome(values=[0.7], before=[0.9, 0.8], first_epoch=2),  # went on with the weights of the first
        Outcome(values=[0.1], first_epoch=2),  # of unknown origin
        Outcome(values=[0.9, None]),
        failed,
        Outcome(),
    ]
    for number, outcome in enumerate(outcomes):
        write_outcome(tmp_path / f"trial_{number}", outcome)
    assert read_curves(tmp_path) == [[0.9, 0.8], [0.9, 0.8, 0.7]]


def test_a_file_that_is_being_written_is_none_yet(tmp_path):
    (tmp_path / "half.json").write_text('{"steps": ')
    assert read_json(tmp_path / "half.json") is None
    assert plain({"a": (np.float32(0.5), float("inf")), 1: [np.int64(3)]}) == {"a": [0.5, None], "1": [3]}
