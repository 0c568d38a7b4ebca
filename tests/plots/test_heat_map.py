from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, Trace
from gradrecipes.plots.canvas import LABELS_AT_MOST, NONFINITE_COLOUR, ZERO_COLOUR, groups
from gradrecipes.plots.heat_map import COLUMNS_AT_MOST, HeatMap
from tests import records


def make_trace(norms, *, layers=None, outcome=None, parameters=None, **readings):
    norms = np.asarray(norms, np.float32)
    steps, depth = norms.shape
    layers = layers or [f"layer_{i}" for i in range(depth)]
    described = [{"name": name, "parameters": count} for name, count in zip(layers, parameters or [1] * depth)]  # noqa: B905
    trace = Trace(layers, description=records.described({"layers": described} if parameters else {}))
    defaults = {"loss": np.ones(steps), "gradient_norm": np.ones(steps), "outcome": outcome or [APPLIED] * steps}
    trace.extend(step=np.arange(steps), layer_gradient_norm=norms, **{**defaults, **readings})
    return trace


def legend_of(heat_map):
    legend = heat_map.ax_.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_values_are_layers_by_steps_and_layers_without_the_reading_are_dropped():
    heat_map = HeatMap.from_trace(make_trace([[1, np.nan, 3], [4, np.nan, 6]], layers=["a", "pool", "b"]))
    assert heat_map.layers == ("a", "b")
    np.testing.assert_array_equal(heat_map.values, [[1, 4], [3, 6]])


def test_every_kind_of_cell_has_its_legend_entry():
    trace = make_trace([[1, 0], [np.inf, 2], [np.nan, 3]], outcome=[APPLIED, APPLIED, SKIPPED_GRADIENT])
    heat_map = HeatMap.from_trace(trace).plot()
    assert legend_of(heat_map) == ["not finite (NaN or infinite)", "exactly zero", "skipped step"]
    patches = heat_map.ax_.get_legend().get_patches()
    assert [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in patches] == [NONFINITE_COLOUR, ZERO_COLOUR]


def test_a_healthy_run_has_no_legend_but_title_labels_and_a_unit():
    heat_map = HeatMap.from_trace(make_trace([[1, 2], [3, 4]])).plot()
    assert legend_of(heat_map) == []
    assert heat_map.ax_.get_title(loc="left") and heat_map.ax_.get_xlabel() and heat_map.ax_.get_ylabel()
    assert "L2 norm" in heat_map.figure_.axes[1].get_ylabel()


@pytest.mark.parametrize(
    "norms", [[[1.0]], [[0.0]], [[np.inf]], [[1, 2, 3]], [[1], [2]], [[1e-38, 3e38]], [[5, 5], [5, 5]]], ids=str
)
def test_small_and_extreme_traces_are_drawn(norms, tmp_path):
    HeatMap.from_trace(make_trace(norms)).save(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("trace", [Trace(), Trace(["a"]), make_trace([[np.nan]])], ids=["bare", "no steps", "all NaN"])
def test_without_a_value_the_plot_says_so(trace):
    heat_map = HeatMap.from_trace(trace).plot()
    assert "nothing to draw" in heat_map.ax_.texts[0].get_text()


def test_a_run_that_is_nan_from_its_first_step_is_red_where_there_are_weights():
    trace = make_trace([[np.nan, np.nan]] * 3, loss=[np.nan] * 3, gradient_norm=[np.nan] * 3, parameters=[0, 10])
    heat_map = HeatMap.from_trace(trace).plot()
    assert heat_map.layers == ("layer_1",)
    assert "not finite (NaN or infinite)" in legend_of(heat_map)


def test_steps_at_which_nothing_was_measured_are_left_out():
    trace = make_trace([[1.0], [np.nan], [2.0]])
    assert HeatMap.from_trace(trace).steps.tolist() == [0, 2]


def test_one_bad_step_among_thousands_is_still_drawn():
    norms = np.ones((20_000, 2))
    norms[12_345, 1] = np.nan
    heat_map = HeatMap.from_trace(make_trace(norms)).plot()
    cells = heat_map.ax_.collections
    assert cells[0].get_array().shape == (2, COLUMNS_AT_MOST)
    assert (~cells[1].get_array().mask).sum() == 1


@given(count=st.integers(1, 5000), at_most=st.integers(1, 600))
def test_groups_share_out_every_item_once(count, at_most):
    starts = groups(count, at_most)
    assert starts[0] == 0
    assert len(starts) == min(count, at_most)
    sizes = np.diff([*starts, count])
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1


def test_names_stay_few_and_are_no_mathematics(tmp_path):
    names = [f"$x_{i}$ {'long' * 20}" for i in range(200)]
    heat_map = HeatMap.from_trace(make_trace(np.ones((2, 200)), layers=names)).plot()
    labels = heat_map.ax_.get_yticklabels()
    assert len(labels) <= LABELS_AT_MOST
    assert all(len(label.get_text()) <= 30 and not label.get_parse_math() for label in labels)
    heat_map.save(tmp_path / "names.svg")


@pytest.mark.parametrize("reading", ["output_rms", "update_ratio"])
def test_readings_of_the_samples_are_drawn_too(reading):
    trace = make_trace([[1.0], [1.0]])
    trace.extend_samples(step=[0, 1], **{reading: [[2.0], [3.0]]})
    np.testing.assert_array_equal(HeatMap.from_trace(trace, reading).values, [[2, 3]])


def test_an_unknown_reading_lists_the_choices():
    with pytest.raises(ValueError, match=r"Unknown reading 'norm'.*layer_gradient_norm.*output_rms"):
        HeatMap.from_trace(Trace(), "norm")
    with pytest.raises(ValueError, match="Unknown reading 'norm'"):
        HeatMap([[1]], steps=[0], layers=["a"], reading="norm")


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[layers, steps\] = \(1, 2\).*Received: \(2, 1\)"):
        HeatMap([[1], [2]], steps=[0, 1], layers=["a"])


def test_neither_pyplot_nor_the_backend_is_touched():
    before = matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules
    HeatMap.from_trace(make_trace([[1, 2]])).plot()
    assert (matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules) == before


def test_it_draws_on_the_axes_of_the_user():
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    heat_map = HeatMap.from_trace(make_trace([[1, 2]]))
    assert heat_map.plot(ax) is heat_map
    assert heat_map.ax_ is ax


# Machado et al. (2009), severity 1, linear RGB.
SEEN_BY = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab_as_seen(rgb, matrix):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@pytest.mark.parametrize("vision", SEEN_BY)
@pytest.mark.parametrize("colour", [NONFINITE_COLOUR, ZERO_COLOUR])
def test_special_colours_are_told_from_the_scale_by_every_eye(vision, colour):
    scale = matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3]
    special = np.array(matplotlib.colors.to_rgb(colour))
    matrix = SEEN_BY[vision]
    distance = np.linalg.norm(lab_as_seen(scale, matrix) - lab_as_seen(special, matrix), axis=1)
    assert distance.min() > 20
