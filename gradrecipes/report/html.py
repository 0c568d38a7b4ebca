"""A diagnosis as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradrecipes import __version__
from gradrecipes.core.signal_theory import finite_width_log_std
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.trial_reading import TrialReading, variation_of
from gradrecipes.diagnosis.facts.chain import links, stretches
from gradrecipes.diagnosis.registry import RulePage, rule_page, rules
from gradrecipes.plots.curves import TrainingCurves, TrialCurves
from gradrecipes.plots.heat_map import HeatMap
from gradrecipes.plots.layer_profile import LayerProfile
from gradrecipes.report import facts as run_facts
from gradrecipes.report import findings as wording
from gradrecipes.report.facts import looked_at, trial_rows
from gradrecipes.report.findings import OrderedFindings, path

EVENTS_AT_MOST = 200  # events that are listed one by one; the counts cover all of them


def write_html(path: str | os.PathLike[str], diagnoses: Sequence[tuple[str, OrderedFindings]]) -> None:
    """Write one self-contained page about one run or several.

    Args:
        path: Where to write; folders that are missing are made.
        diagnoses: Pairs of the name of a run and its diagnosis. The name of a single run may be empty.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: There is no diagnosis.
    """
    page = render_page(diagnoses)  # before the file is touched, so that an error leaves the old one whole
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))


def render_page(diagnoses: Sequence[tuple[str, OrderedFindings]]) -> str:
    """Return the page that `write_html` writes: with the pictures of a single run, of several those of unhealthy ones.

    Pictures take longer than the fit of a small net.
    """
    if not diagnoses:
        raise ValueError(
            "A report needs at least one diagnosis. Received an empty list. "
            "`gradrecipes.diagnose(trace)` makes a diagnosis."
        )
    environment = _environment()
    runs = [_run(place, name, diagnosis) for place, (name, diagnosis) in enumerate(diagnoses, 1)]
    for run, (_, diagnosis) in zip(runs, diagnoses, strict=True):
        run["pictured"] = len(runs) == 1 or diagnosis.verdict == "unhealthy"
        run["pictures"] = pictures(diagnosis.trace) if run["pictured"] else []
    return environment.get_template("page.html.j2").render(runs=runs, version=__version__)


def render_fragment(diagnosis: OrderedFindings) -> str:
    """Return a part of a page, with its own style and without pictures, for a notebook cell."""
    run = _run(1, "", diagnosis)
    return _environment().get_template("fragment.html.j2").render(run=run)


def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            "An HTML report needs jinja2, which is not installed. Install it with: pip install 'gradrecipes[report]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "confidence": wording.confidence,
        "clean": wording.printable,
        "paragraphs": _paragraphs,
    }
    return environment


def _page(code: str) -> RulePage | None:
    return rule_page(code) if code in rules() else None


def _run(place: int, name: str, diagnosis: OrderedFindings) -> dict[str, Any]:
    trace = diagnosis.trace
    anchors = {id(finding): f"run-{place}-finding-{count}" for count, finding in enumerate(diagnosis.findings, 1)}

    def linked(finding: Any) -> dict[str, Any]:
        return {"title": finding.title, "anchor": anchors[id(finding)]}

    return {
        "anchor": f"run-{place}",
        "name": name,
        "state": diagnosis.verdict,
        "summary": diagnosis.summary,
        "tally": diagnosis.tally,
        "findings": [
            {
                "finding": finding,
                "anchor": anchors[id(finding)],
                "where": wording.place(finding),
                "since": wording.since(finding, trace),
                "symptoms": [
                    linked(symptom) if symptom else {"title": f"{code} (not seen in this run)", "anchor": ""}
                    for code, symptom in diagnosis.symptoms(finding)
                ],
                "path": path(finding, trace),
                "page": _page(finding.code),
                "causes": [linked(cause) for cause in diagnosis.causes(finding)],
            }
            for finding in diagnosis.findings
        ],
        "pictured": True,
        "pictures": [],
        "tried": trial_rows(trace),
        "looked_at": looked_at(trace),
        "facts": run_facts.facts(trace),
        "layer_columns": [column.replace("_", " ") for column in run_facts.LAYER_COLUMNS],
        "layers": run_facts.layer_rows(trace),
        "event_counts": run_facts.event_counts(trace),
        "events": trace.events[:EVENTS_AT_MOST],
        "events_left_out": max(0, len(trace.events) - EVENTS_AT_MOST),
    }


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of the Markdown of a rule's page, each on one line; items of a list each for itself."""
    parts = re.split(r"\n\s*\n|\n(?=- )", text)
    return [" ".join(part.removeprefix("- ").split()) for part in parts if part.strip()]


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
