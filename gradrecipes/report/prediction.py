"""What theory expects of the gradient at each layer, to be drawn beside what was measured."""

from __future__ import annotations

import math

import numpy as np

from gradrecipes.core.theory.signal_theory import finite_width_log_std
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.facts.chain import links, stretches

DEVIATIONS = 2.0  # standard deviations of the band
NARROWEST = 1.05  # factor; a band thinner than that cannot be seen


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
