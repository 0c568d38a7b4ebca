from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.analysis.clipping_report import clipping_report, recommend_bound
from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, Trace


def trace_of(norms, factor=None, outcome=None):
    trace = Trace()
    count = len(norms)
    columns = {} if factor is None else {"clip_factor": factor}
    trace.extend(step=np.arange(count), gradient_norm=norms, outcome=outcome or [APPLIED] * count, **columns)
    return trace


def test_shares_and_percentiles_are_of_applied_steps_with_a_finite_norm():
    norms = [1.0, 2.0, 4.0, 8.0, np.nan, np.inf, 1e9]
    factor = [1.0, 1.0, 0.5, 0.25, 1.0, 0.0, 1e-9]
    report = clipping_report(trace_of(norms, factor, [APPLIED] * 6 + [SKIPPED_GRADIENT]))
    assert (report.steps, report.applied_steps, report.clipped_steps) == (7, 4, 2)
    assert (report.skipped_steps, report.nonfinite_steps, report.clipped_share) == (1, 2, 0.5)
    assert report.norms_before[50] == np.percentile([1, 2, 4, 8], 50)
    assert (report.norms_after[0], report.norms_after[100]) == (1.0, 2.0)


def test_the_bound_is_the_ninetieth_percentile_of_a_calm_run():
    norms = np.exp(np.random.default_rng(0).normal(0, 0.3, 1000))
    bound, reason = recommend_bound(norms)
    assert bound == pytest.approx(np.percentile(norms, 90), rel=0.05)
    assert "90th percentile" in reason
    assert np.mean(norms <= bound) == pytest.approx(0.9, abs=0.03)


@given(
    seed=st.integers(0, 99),
    spikes=st.floats(0, 0.3),
    height=st.sampled_from([100.0, 1e8, 1e30]),
    spoilt=st.floats(0, 0.5),
    scale=st.floats(-20, 20),
)
def test_neither_spikes_nor_nan_move_the_bound_beyond_ten_times_the_usual_norm(seed, spikes, height, spoilt, scale):
    random = np.random.default_rng(seed)
    usual = np.exp(random.normal(0, 0.3, 400)) * 10.0**scale
    norms = np.where(random.random(400) < spikes, usual * height, usual)
    norms[random.random(400) < spoilt] = random.choice([np.nan, np.inf, 0.0])
    bound, reason = recommend_bound(norms)
    assert 0.5 * np.median(usual) <= bound <= 25 * np.median(usual)
    assert reason


def test_a_bound_scales_with_the_norms():
    norms = np.exp(np.random.default_rng(1).normal(0, 0.5, 200))
    small, large = recommend_bound(norms)[0], recommend_bound(norms * 1000)[0]
    assert large == pytest.approx(1000 * small, rel=0.1)


def test_norms_that_grew_in_the_run_are_not_taken_for_healthy():
    norms = np.concatenate([np.full(100, 2.0), np.geomspace(2.0, 1e12, 300)])
    bound, reason = recommend_bound(norms)
    assert bound == 2.0
    assert "first quarter" in reason and "rose" in reason


def test_too_few_steps_give_no_bound_but_say_how_many_it_takes():
    for norms in ([], [1.0] * 19, [np.nan] * 100):
        bound, reason = recommend_bound(np.array(norms))
        assert bound is None
        assert "at least 20 applied steps" in reason


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ([1.0] * 40, "Nothing was clipped"),
        ([0.5] * 4 + [1.0] * 36, "larger steps"),
        ([0.5] * 30 + [1.0] * 10, "Most steps were clipped"),
        (None, "Nothing was clipped"),
    ],
)
def test_the_verdict_fits_the_share(factor, words):
    report = clipping_report(trace_of([3.0] * 40, factor))
    assert words in report.verdict
    assert words in str(report)
    assert "Recommended bound: 3." in str(report)


def test_an_empty_or_wholly_spoilt_trace_is_told_and_not_failed():
    for trace in (Trace(), trace_of([np.nan] * 3)):
        report = clipping_report(trace)
        assert "nothing to say" in report.verdict
        assert "Recommended bound: none" in str(report)
        assert report.clipped_share == 0.0


def test_it_is_strict_json():
    report = clipping_report(trace_of([1.0, np.nan, 2.0] * 20, [0.5, 1.0, 1.0] * 20))
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["norms_before"]["p100"] == 2.0
    assert values["clipped_share"] == 0.5
    assert "1211.5063" in values["source"]
