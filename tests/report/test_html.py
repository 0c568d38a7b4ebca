from __future__ import annotations

import importlib.util
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description, LayerDescription, OptimizerDescription
from gradrecipes.core.trace.trace import Event
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.report.html import EVENTS_AT_MOST, render_fragment, render_page, write_html

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Read a page as a browser would: its elements, its text, what it would fetch, and whether all is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.links, self.fetched, self.words, self.open = [], [], [], [], [], []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"a handler: {name}={value}"
            if name == "id":
                self.ids.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "action", "poster"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def make_diagnosis(text="plain", *, events=1):
    trace = Trace(
        [text, "output"],
        description=Description(
            model=text,
            optimizer=OptimizerDescription(text, 0.1, settings={text: text}),
            layers=(LayerDescription(text, "Dense", units=8, parameters=80),),
        ),
    )
    trace.extend(step=[0, 1, 2], loss=[1, 2, np.nan], gradient_norm=[1, 9, np.inf], layer_gradient_norm=np.ones((3, 2)))
    trace.extend_samples(step=[0], output_rms=[[1, 2]], output_gradient_norm=[[3, 4]])
    for step in range(events):
        trace.add_event(Event("skip", step, 0, step, text, {text: text}))
    cause = Finding(
        "cause",
        text,
        Kind.CAUSE,
        Severity.CRITICAL,
        0.92,
        text,
        layer=text,
        evidence=(Evidence(text, 1.5, float("nan"), text),),
        prescriptions=(Prescription(text, text, text, text, text),),
        leads_to=("symptom", "unseen"),
    )
    symptom = Finding("symptom", "What one sees", Kind.SYMPTOM, Severity.WARNING, 1.0, "Because.", step=2)
    return Diagnosis((symptom, cause), trace)


def test_the_page_holds_everything_and_fetches_nothing(tmp_path):
    make_diagnosis("exploding").save_html(tmp_path / "new" / "report.html")
    source = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    assert len(page.fetched) == 3
    assert all(value.startswith("data:image/png;base64,") for value in page.fetched)
    assert "url(" not in source and "@import" not in source and "<script" not in source
    assert "default-src 'none'" in source
    for words in (
        "Unhealthy: exploding",
        "1 critical finding, 1 warning",
        "very likely (92%)",
        "from the start, before training",
        "since epoch 1, batch 1 (step 2)",
        "leads to What one sees , unseen (not seen in this run)",
        "Brought about by exploding → this",
        "1.5 NaN",
        "Risk exploding",
        "Reference exploding",
        "Loss and gradient norm",
        "The run",
        "Learning rate",
    ):
        assert words in page.text, words


def test_every_link_leads_to_a_place_in_the_page():
    page = Page(render_page([("a", make_diagnosis()), ("b", make_diagnosis()), ("c", Diagnosis((), Trace()))]))
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "3 runs" in page.text
    assert "The record holds no training step" in page.text


def test_hostile_text_stays_text():
    plain, hostile = (
        Page(render_page([("plain", make_diagnosis())])),
        Page(render_page([(HOSTILE, make_diagnosis(HOSTILE))])),
    )
    assert sorted(hostile.tags) == sorted(plain.tags)
    assert "script" not in hostile.tags
    assert HOSTILE in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=40))
def test_no_name_changes_the_structure_of_a_fragment(name):
    assert Page(render_fragment(make_diagnosis(name))).tags == Page(render_fragment(make_diagnosis())).tags


def test_a_lone_surrogate_does_not_break_the_file(tmp_path):
    write_html(tmp_path / "r.html", [("\ud800", make_diagnosis("\ud800"))])
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!")


def test_the_notebook_shows_the_fragment():
    shown = make_diagnosis()._repr_html_()
    assert Page(shown).text.startswith("Unhealthy: plain")
    assert "<img" not in shown


def test_many_events_are_counted_and_the_first_listed():
    text = Page(render_fragment(make_diagnosis())).text
    assert "What happened" not in text
    page = Page(render_page([("", make_diagnosis(events=EVENTS_AT_MOST + 50))]))
    assert f"The first {EVENTS_AT_MOST} events, 50 more in the trace" in page.text
    assert f"skip plain {EVENTS_AT_MOST + 50} epoch 1" in page.text


def test_no_diagnosis_is_an_error():
    with pytest.raises(ValueError, match="at least one diagnosis"):
        render_page([])


def test_the_settings_of_the_user_neither_change_nor_are_changed():
    expected = render_page([("", make_diagnosis())])
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white", "font.size": 30}):
        assert render_page([("", make_diagnosis())]) == expected
        assert matplotlib.rcParams["figure.facecolor"] == "black"


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_says_how_to_get_it_and_leaves_the_old_page(library, monkeypatch, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'gradrecipes\[report\]'"):
        make_diagnosis().save_html(path)
    assert path.read_text() == "old"
    assert (make_diagnosis()._repr_html_() is None) == (library == "jinja2")


def test_the_templates_lie_in_the_package():
    package = Path(importlib.util.find_spec("gradrecipes.report").origin).parent
    assert {path.name for path in (package / "templates").iterdir()} == {
        "page.html.j2",
        "fragment.html.j2",
        "parts.html.j2",
        "style.css",
    }


def test_of_several_runs_only_the_unhealthy_ones_have_pictures():
    several = [("well", Diagnosis((), Trace())), ("ill", make_diagnosis())]
    assert render_page(several).count("<img") == render_page([("ill", make_diagnosis())]).count("<img") > 0
    assert "Among several runs only unhealthy ones have pictures" in render_page(several)
