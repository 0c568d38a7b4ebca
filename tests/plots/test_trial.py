from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.plots.curves import TrialCurves
from tests.records import with_records

VARIED = {"scaled_inputs": {"start": 4.0, "end": 1.0}, "rate_0.1": {"start": None, "end": None, "broken": 2}}


def trace_of(loss):
    trace = Trace(["dense"])
    trace.extend(step=np.arange(len(loss)), loss=loss)
    with_records(trace, {}, {"trial": {"batches": 2, "chance": 2.0, "varied": VARIED}})
    return trace


def test_each_pass_is_the_median_of_its_finite_losses():
    curves = TrialCurves([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0], batches=2)
    assert curves.passes == pytest.approx([2.0, 5.0, np.nan, 7.0], nan_ok=True)
    assert TrialCurves([1.0, 2.0, 6.0]).passes.tolist() == [2.0]


def test_the_picture_shows_losses_passes_chance_and_each_variation():
    curves = TrialCurves.from_trace(trace_of([8.0, 6.0, 900.0, np.nan]), names={"scaled_inputs": "inputs scaled"})
    losses, ends = curves.plot().axes_
    assert list(curves.varied) == ["inputs scaled", "rate_0.1"]
    assert losses.get_yscale() == "log"
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert labels == ["each batch", "median of a pass", "not finite", "best constant prediction"]
    assert [label.get_text() for label in ends.get_xticklabels()] == ["inputs scaled", "rate_0.1"]
    crosses = [line for line in ends.get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1]]


@pytest.mark.parametrize("loss", [[], [np.nan], [0.0, -1.0], [3e38, 1e-38]])
def test_odd_losses_are_drawn(loss, tmp_path):
    TrialCurves(loss, varied={"a": (1.0, 2.0), "b": None}).save(tmp_path / "trial.png")
    TrialCurves.from_trace(Trace()).save(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="one value for each step"):
        TrialCurves([[1.0]])
