from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.plots.measured import NoiseScale


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
