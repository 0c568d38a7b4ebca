"""The figures that the runner makes of what each benchmark measures."""

from __future__ import annotations

import pytest

from benchmarks import diagnosis, faults, overhead, rescue, run, studies, tuning

ROWS = 4


def measured(found) -> dict[str, float]:
    return {figure.claim: figure.measured for figure in found.figures}


def test_overhead_compares_with_the_clip_of_keras(monkeypatch):
    cell = {"spread": 0.01, "rounds": 15}
    row = {
        "milliseconds of a plain step": {"median": 5.0, "rounds": 15},
        "plain": {"median": 1.0, "spread": 0.0, "rounds": 15},
        "keras clip": {"median": 1.06} | cell,
        "monitor": {"median": 1.04} | cell,
        "monitor + guard + clip": {"median": 1.10} | cell,
    }
    monkeypatch.setattr(overhead, "collect", lambda kind: {"LSTM": row})
    found = run.overhead()
    assert measured(found) == {"LSTM: keras clip": 1.06, "LSTM: monitor": 1.04, "LSTM: monitor + guard + clip": 1.10}
    assert [figure.reproduced for figure in found.figures] == [None, True, False]
    assert found.figures[0].interval == pytest.approx((1.04, 1.08))


def test_studies(monkeypatch):
    monkeypatch.setattr(studies, "compare", lambda rounds: ([0.3, 0.4, 0.35], True, 20))
    found = run.studies()
    assert list(measured(found).values()) == pytest.approx([0.35, 1.0, 0.8])
    assert found.figures[0].reproduced


def test_diagnosis(monkeypatch):
    rows = [
        {"kind": "failing", "right": True, "verdict": "unhealthy", "applied": {"own": 1.0, "reached": True}},
        {"kind": "failing", "right": False, "verdict": "undecided", "applied": {"how": "by hand", "reached": False}},
        {"kind": "twin", "right": False, "verdict": "healthy"},
        {"kind": "sound", "right": False, "verdict": "unhealthy"},
    ]
    monkeypatch.setattr(diagnosis, "SETS", ("tuning_half", "fresh"))
    monkeypatch.setattr(
        diagnosis, "score", lambda name, every, apply: [row | {"applied": {}} if not apply else row for row in rows]
    )
    found = measured(run.diagnosis())
    assert list(found.values()) == [0.5, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5, 0.5, 0.0]
    assert list(found)[4] == "open: the first prescription, applied, reaches the known fix"


def test_rescue_beside_its_baselines(monkeypatch):
    def judge(case, baselines):
        row = {
            "name": case.name,
            "cause": case.cause,
            "right": True,
            "verdict": "rescued",
            "needed": [0.3],
            "trainings": 2.0,
        }
        row |= {"costs": {"control": 0.5}, "steps": {"ours": 100.0, "list": 400.0}}
        return row | {"baselines": dict.fromkeys(("random", "rate/10", "clip", "list"), False)}

    monkeypatch.setattr(rescue, "OPEN", ("tuning_half",))
    monkeypatch.setattr(rescue, "judge", judge)
    found = measured(run.rescue())
    assert found["reaches the known fix"] == found["changes that are needed"] == 1.0
    assert found["cost in trainings of the user's, median"] == 2.0
    assert found["steps of the rescue over those of the list"] == 0.25
    assert found["global_clipnorm=1: reaches the known fix"] == 0.0


def test_tuning_compares_seed_by_seed(monkeypatch):
    def compare(kinds, arms, seeds):
        return [
            {"tuner": kind, "arm": arm, "seed": seed, "steps": {"plain": 100, "ours": 60}[arm], "best": 0.05}
            for kind in kinds
            for arm in arms
            for seed in seeds
        ]

    monkeypatch.setattr(tuning, "compare", compare)
    assert set(measured(run.tuning()).values()) == {0.6, 0.0}


def test_faults_count_what_was_saved(monkeypatch):
    clean = {"optimizer": "Adam", "mode": "graph", "fault": "none", "arm": "keras", "finite": True, "accuracy": 0.9}
    hit = [clean | {"fault": "bit flip", "arm": arm, "accuracy": 0.9 * (arm == "guard")} for arm in faults.ARMS]
    monkeypatch.setattr(faults, "COMPARED", ("Adam",))
    elsewhere = [clean | {"mode": "xla"}, hit[-1] | {"mode": "xla", "finite": False}]
    unrecorded = [hit[0] | {"mode": "xla"}, hit[-1] | {"optimizer": "Lion", "finite": False}]
    monkeypatch.setattr(faults, "collect", lambda workers, wanted: [clean, *hit, *elsewhere, *unrecorded])
    found = run.faults()
    finite, saved = "finite weights at the end", "runs saved"
    assert measured(found) == {
        **{f"{finite}, graph, {arm}": 1.0 for arm in faults.ARMS},
        **{f"{saved}, graph, {arm}": float(arm == "guard") for arm in faults.ARMS},
        f"{finite}, xla, guard": 0.0,
        f"{saved}, xla, guard": 0.0,
    }
    assert [one.claim for one in found.figures if one.reproduced is False] == [f"{finite}, xla, guard"]
    words = "bit flip, Adam, xla: weights not finite, accuracy 0.900, 0.900 without the fault."
    missing = "Not measured yet: eager, eight steps at once, accumulation, mixed_float16, two replicas."
    assert found.findings == [f"Not saved by the guard: {words}", missing]
