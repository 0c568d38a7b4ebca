from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.plots.layer_profile import LayerProfile


@pytest.fixture
def trace():
    trace = Trace(["a", "input", "b"])
    nan = np.nan
    trace.extend_samples(
        step=[0, 10],
        output_rms=[[1.0, nan, 2.0], [3.0, nan, 4.0]],
        output_gradient_norm=[[0.4, nan, 0.2], [0.8, nan, 0.6]],
    )
    return trace


def test_the_first_sample_is_taken_and_layers_without_readings_dropped(trace):
    profile = LayerProfile.from_trace(trace, predicted=[9.0, 8.0, 7.0], band=[1.5, 2.0, 3.0])
    assert (profile.layers, profile.step) == (("a", "b"), 0)
    np.testing.assert_allclose(profile.output_rms, [1, 2])
    np.testing.assert_allclose(profile.output_gradient_norm, [0.4, 0.2])
    np.testing.assert_allclose(profile.predicted, [9, 7])
    np.testing.assert_allclose(profile.band, [1.5, 3])


def test_a_later_sample_is_taken_by_its_step(trace):
    np.testing.assert_allclose(LayerProfile.from_trace(trace, 10).output_rms, [3, 4])


def test_a_step_that_was_not_sampled_names_the_nearest(trace):
    with pytest.raises(ValueError, match=r"step=7. The nearest sampled one is 10"):
        LayerProfile.from_trace(trace, 7)
    with pytest.raises(ValueError, match="no samples"):
        LayerProfile.from_trace(Trace(["a"]), 7)


def test_the_prediction_stands_beside_the_measurement_with_its_band(trace):
    forward, backward = LayerProfile.from_trace(trace, predicted=[0.5, 0.5, 0.5], band=2.0).plot().axes_
    assert (forward.get_xscale(), backward.get_xscale()) == ("log", "log")
    labels = backward.get_legend_handles_labels()[1]
    assert sorted(labels) == ["measured", "predicted", "predicted, within its error"]
    edges = backward.collections[0].get_paths()[0].vertices[:, 0]
    assert (edges.min(), edges.max()) == pytest.approx((0.25, 1.0))


def test_values_that_are_not_finite_or_zero_are_marked(tmp_path):
    profile = LayerProfile([1.0, np.inf, np.nan, 0.0], [np.nan] * 4, layers="abcd").plot()
    marks = {line.get_label(): line.get_ydata().tolist() for line in profile.axes_[0].lines}
    assert marks["not finite"] == [1, 2]
    assert marks["exactly zero"] == [3]
    assert "no finite value of output_gradient_norm" in profile.axes_[1].texts[0].get_text()
    profile.save(tmp_path / "profile.png")


@pytest.mark.parametrize("depth", [0, 1, 120])
def test_shallow_and_deep_networks_are_drawn(depth, tmp_path):
    values = np.full(depth, 2.0)
    LayerProfile(values, values, layers=[f"layer_{i}" for i in range(depth)]).save(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 0


def test_labels_of_less_than_two_decades_do_not_touch():
    profile = LayerProfile([0.5, 0.3, 0.4], [0.001, 1.0, 40.0], layers=["a", "b", "c"]).plot()
    profile.figure_.draw_without_rendering()
    narrow, wide = profile.axes_
    texts = narrow.xaxis.get_ticklabels(minor=True) + narrow.xaxis.get_ticklabels()
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    assert {"0.2", "0.5", "1"} <= {text.get_text() for text in shown}
    boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert wide.xaxis.get_major_formatter().__class__.__name__.startswith("LogFormatter")


def test_a_trace_without_samples_gives_an_empty_profile():
    profile = LayerProfile.from_trace(Trace(["a"])).plot()
    assert profile.layers == ()
    assert profile.axes_[0].texts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"predicted": [1.0]}, "`predicted` must have one value for each of the 2 layers"),
        ({"band": 0.5}, "`band` must be a factor of at least 1"),
        ({"band": [1.0, 2.0, 3.0]}, "`band` must be a factor"),
    ],
)
def test_bad_arguments_are_explained(arguments, words):
    with pytest.raises(ValueError, match=words):
        LayerProfile([1, 2], [1, 2], layers="ab", **arguments)


def test_a_prediction_must_fit_the_layers_of_the_trace(trace):
    with pytest.raises(ValueError, match="3 layers of the trace"):
        LayerProfile.from_trace(trace, predicted=[1.0, 2.0])
