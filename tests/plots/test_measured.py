from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.plots.measured import LearningRateRange, NoiseScale

RATES = np.geomspace(1e-6, 10, 80)
LOSSES = np.where(RATES < 1e-1, 2.5 - np.maximum(0, np.log10(RATES / 1e-4)) * 0.6, 0.7 * (RATES / 1e-1) ** 0.7)


def labels_of(ax):
    return ax.get_legend_handles_labels()[1]


def test_the_picture_says_what_the_curve_says():
    curve = LearningRateRange(RATES, LOSSES).plot()
    axes = curve.axes_
    assert axes.get_xscale() == "log" and axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    names = [label.split(":")[0] for label in labels_of(axes)]
    assert names == ["one batch", "smoothed", "valley", "steepest", "minimum / 10", f"diverged at {RATES[-1]:.2g}"]
    marks = {line.get_label().split(":")[0]: line.get_xdata()[0] for line in axes.lines if ":" in line.get_label()}
    assert marks["valley"] == curve.valley and marks["steepest"] == curve.steepest
    assert marks["minimum / 10"] == curve.minimum_tenth
    assert 1e-4 < curve.valley < curve.steepest < 1e-1


def test_the_words():
    assert "Start with a learning rate near" in str(LearningRateRange(RATES, LOSSES))
    assert "Diverged at 10" in str(LearningRateRange(RATES, LOSSES))
    assert "No rate from 1e-06 to 10" in str(LearningRateRange(RATES, np.ones(80)))
    plain = LearningRateRange(RATES, LOSSES).to_dict()
    assert plain["diverged_at"] == 10 and len(plain["losses"]) == 80


@pytest.mark.parametrize(
    "losses", [np.full(80, np.nan), np.ones(80), np.r_[np.ones(79), np.inf], -LOSSES, np.ones(80) * 1e30], ids=range(5)
)
def test_extreme_curves_are_drawn(losses, tmp_path):
    LearningRateRange(RATES, losses).save(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_short_ones_too_and_on_the_axes_of_the_user(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    curve = LearningRateRange(RATES[:3], LOSSES[:3]).plot(figure.add_subplot())
    assert curve.figure_ is figure
    curve.save(tmp_path / "curve.svg")
    with pytest.raises(ValueError, match=r"\(80,\) and \(3,\)"):
        LearningRateRange(RATES, LOSSES[:3])


def test_the_picture_crosses_at_the_noise_scale():
    found = NoiseScale([1.0, 1.1, 0.9, 1.0], [200.0, 190.0, 210.0, 205.0], batch_size=32).plot()
    axes = found.axes_
    assert found.noise_scale == pytest.approx(805 / 4 / 1.0)
    step, sample = (line for line in axes.lines if line.get_label() in ("of a step", "of a sample"))
    crossing = np.argmin(np.abs(step.get_ydata() - sample.get_ydata()))
    assert step.get_xdata()[crossing] == pytest.approx(found.noise_scale, rel=0.05)
    assert axes.get_xscale() == "log" and axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    assert "noise scale: 201" in axes.get_legend_handles_labels()[1]
    assert found.to_dict()["batch_size"] == 32 and found.advice == str(found)


@pytest.mark.parametrize("signals, words", [([1.0, 2.0], None), ([-1.0, -2.0], "drowns"), ([1e-9, 2e-9], None)])
def test_extreme_cases_are_drawn(signals, words, tmp_path):
    found = NoiseScale(signals, [5.0, 5.5], batch_size=8)
    found.save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 1000
    if words:
        assert found.noise_scale == math.inf and words in found.axes_.texts[0].get_text()


def test_no_noise_at_all(tmp_path):
    found = NoiseScale([1.0, 1.0], [0.0, 0.0], batch_size=8)
    found.save(tmp_path / "noise.svg")
    assert found.noise_scale == 0 and "far above" not in NoiseScale([1.0, 1.0], [8.0, 8.0], batch_size=8).advice
