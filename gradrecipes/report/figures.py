"""The pictures of a report, as PNG in data URLs, looking the same whatever the user's matplotlib settings."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradrecipes.core.theory.signal_theory import finite_width_log_std
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.core.trace.variation import variation_of
from gradrecipes.diagnosis.facts.chain import links, stretches
from gradrecipes.plots.curves import TrainingCurves
from gradrecipes.plots.heat_map import HeatMap
from gradrecipes.plots.layer_profile import LayerProfile
from gradrecipes.plots.trial import TrialCurves

DOTS_PER_INCH = 144  # twice the 72 points of the page, so that print and dense screens stay sharp
DEVIATIONS = 2.0  # standard deviations of the band
NARROWEST = 1.05  # factor; a band thinner than that cannot be seen


@dataclass(frozen=True)
class Picture:
    """A picture in a page.

    Args:
        title: Heading above it.
        caption: How to read it.
        source: `data:image/png;base64,...`
        width: Pixels.
        height: Pixels.
    """

    title: str
    caption: str
    source: str
    width: int
    height: int


def pictures(trace: Trace) -> list[Picture]:
    """Return the trial, the heat map, the curves and the layer profile of a trace; those without data are left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found = []
    variations = (trace.probes.trial or TrialReading()).variations
    if variations:
        caption = (
            "The same batches come again and again, so each pass is compared with the one before. "
            "An arrow runs from the first pass of a variation to its last; a cross is a run that broke."
        )
        names = {name: variation_of(name).label for name in variations}
        found.append(_picture("The trial and its variations", caption, TrialCurves.from_trace(trace, names=names)))
    heat_map = HeatMap.from_trace(trace)
    if heat_map.values.size:
        caption = "One row a layer, one column a step. Bright columns at the end of a run are a gradient that explodes."
        found.append(_picture("Gradients by layer and step", caption, heat_map))
    if len(trace):
        caption = "The loss of each batch, and the size of the whole gradient before clipping."
        found.append(_picture("Loss and gradient norm", caption, TrainingCurves.from_trace(trace)))
    expected = predicted_gradients(trace)
    known = {} if expected is None else {"predicted": expected[0], "band": expected[1]}
    profile = LayerProfile.from_trace(trace, **known)
    if profile.layers:
        caption = (
            "A line that stays within a decade is healthy. "
            "One that leans steadily multiplies the signal at every layer."
            + (" The band is what theory expects of these weights, counted back from the last layer." if known else "")
        )
        found.append(_picture("Signal by layer at the first sample", caption, profile))
    return found


def _picture(title: str, caption: str, display: Any) -> Picture:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "An HTML report needs matplotlib, which is not installed. "
            "Install it with: pip install 'gradrecipes[report]'"
        ) from error

    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    with matplotlib.rc_context(settings):
        figure = display.plot().figure_
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    width, height = (round(inches * DOTS_PER_INCH) for inches in figure.get_size_inches())
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Picture(title, caption, source, width, height)


def predicted_gradients(trace: Trace) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what mean-field theory expects of the output gradients, counted back from the last layer of each stretch.

    Returns:
        (predicted, band), each float64 `[layers]`: the norm, NaN where theory says nothing, and the factor within
        which it holds at these widths; None where it says nothing at all.
    """
    depth = len(trace.layers)
    predicted, band = np.full(depth, np.nan), np.ones(depth)
    place = {name: index for index, name in enumerate(trace.layers)}
    for stretch in stretches(trace):
        log_norm, widths = math.log(stretch[-1].output_gradient), []
        if not math.isfinite(log_norm):
            continue
        predicted[place[stretch[-1].name]] = math.exp(log_norm)
        for stage, link in reversed(list(zip(stretch[:-1], links(stretch), strict=True))):
            log_norm += link.backward_predicted
            widths += [] if stage.drift else [stage.units]
            if not abs(log_norm) < 700.0:  # beyond what a float holds
                break
            predicted[place[stage.name]] = math.exp(log_norm)
            error = finite_width_log_std(widths) / 2.0 if widths else 0.0
            band[place[stage.name]] = math.exp(min(DEVIATIONS * error, 50.0))
        inside = np.arange(place[stretch[0].name], place[stretch[-1].name] + 1)
        known = inside[np.isfinite(predicted[inside])]  # between two of them stand layers that only pass the signal on
        between = inside[inside >= known[0]]
        predicted[between] = np.exp(np.interp(between, known, np.log(predicted[known])))
        band[between] = np.interp(between, known, band[known])
    if np.isfinite(predicted).sum() < 2:
        return None
    return predicted, np.maximum(band, NARROWEST)
