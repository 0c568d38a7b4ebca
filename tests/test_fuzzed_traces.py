"""A damaged file is no trace, a reading of a wrong shape is refused, and whatever a trace holds can be read out."""

from __future__ import annotations

import io
import json
import logging
import zipfile

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gradrecipes as gr
from gradrecipes.core.trace import HISTOGRAM_BINS, OUTCOMES, SAMPLE_READINGS, STEP_READINGS, Trace
from gradrecipes.core.trace.description import Description, LayerDescription
from gradrecipes.core.trace.trace import Event
from gradrecipes.report.html import render_page
from tests.records import described

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from(np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1, 1e-45, 1e-38, 3e38, -1, 1e20]).tolist()),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**40), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.characters(max_codepoint=0x17F)  # matplotlib warns of those that its font lacks; control characters too
PICTURES = (gr.plots.HeatMap, gr.plots.TrainingCurves, gr.plots.LayerProfile, gr.plots.ClippedNorms)
QUICK = settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink a trace takes minutes
WHOLE_NUMBERS = ("epoch", "batch", "outcome")


@st.composite
def traces(draw) -> Trace:
    """Return a trace of a few steps and layers with anything in it that `extend` takes."""
    names = draw(st.lists(st.text(NAMES, max_size=6), max_size=4, unique=True))
    steps, samples = draw(st.integers(0, 40)), draw(st.integers(0, 3))

    def numbers(*shape):
        return draw(arrays.arrays(np.float32, shape, elements=NUMBERS, fill=NUMBERS))

    layers = tuple(draw(st.builds(LayerDescription, st.just(name))) for name in names)
    described = st.builds(Description, layers=st.sampled_from([(), layers]), calls=st.none(), inputs=st.just(()))
    trace = Trace(names, description=draw(described))
    outcomes = draw(arrays.arrays(np.int32, steps, elements=st.sampled_from(sorted(OUTCOMES))))
    trace.extend(
        step=np.arange(steps),
        outcome=outcomes,
        **{name: numbers(steps) for name in STEP_READINGS if name not in WHOLE_NUMBERS},
        layer_gradient_norm=numbers(steps, len(names)),
    )
    trace.extend_samples(
        step=draw(st.lists(st.integers(0, 50), min_size=samples, max_size=samples)),
        **{name: numbers(samples, len(names)) for name in SAMPLE_READINGS},
        histogram=numbers(samples, len(names), HISTOGRAM_BINS),
    )
    for kind in draw(st.lists(st.sampled_from(["skip", "epoch", "rollback", "stop", "odd"]), max_size=3)):
        trace.add_event(Event(kind, draw(st.integers(0, 50)), 0, 0, details=draw(st.dictionaries(st.text(), JSON))))
    return trace


@settings(QUICK, max_examples=60)
@given(trace=traces())
def test_every_trace_is_diagnosed_and_told(trace):
    with heard() as said:
        diagnosis = gr.diagnose(trace)
    assert not said, said
    json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    assert str(diagnosis)
    assert diagnosis.summary in repr(diagnosis)
    assert repr(gr.clipping_report(trace)) and repr(trace)


@settings(QUICK, max_examples=40)
@given(trace=traces())
def test_every_trace_is_saved_and_read_to_the_bit(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    trace.save(path)
    read = Trace.load(path)
    assert read.layers == trace.layers
    for table, other in ((trace.steps, read.steps), (trace.samples, read.samples)):
        for name, values in table.items():
            assert values.tobytes() == other[name].tobytes()
    assert read.description.to_json() == trace.description.to_json()
    assert json.dumps([one.to_dict() for one in read.events]) == json.dumps([one.to_dict() for one in trace.events])


@pytest.mark.slow
@settings(QUICK, max_examples=8)
@given(trace=traces())
def test_every_trace_is_drawn_and_written_as_a_page(trace):
    for picture in PICTURES:
        picture.from_trace(trace).plot().figure_.canvas.draw()
    assert "</html>" in render_page([("", gr.diagnose(trace))])


@given(data=st.data())
def test_a_reading_of_a_wrong_shape_or_kind_is_refused_and_nothing_is_added(data):
    trace = Trace(["one", "two"])
    trace.append(step=0, loss=1.0)
    name = data.draw(st.sampled_from([*STEP_READINGS, "layer_gradient_norm", "step", "unknown"]))
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    kinds = st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.complex64, np.dtype("U2"), object])
    value = data.draw(st.one_of(st.builds(np.zeros, st.just(shape), kinds), JSON, st.just([[1.0], [1.0, 2.0]])))
    try:
        trace.extend(**{"step": [1], name: value})
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError)
        assert "Received" in str(error) or "must all have one shape" in str(error) or "Unknown reading" in str(error)
        assert len(trace) == 1
    else:
        assert len(trace) == (1 + len(value) if name == "step" else 2)
    assert {len(values) for _, values in trace.steps.items()} == {len(trace)}


# -- files ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    trace = Trace(["one", "two"], description=described({"layers": [{"name": "one"}, {"name": "two"}]}))
    trace.extend(step=[0, 1], loss=[1.0, 0.5], gradient_norm=[1.0, np.inf], layer_gradient_norm=[[1, 0], [np.nan, 1]])
    trace.add_event(Event("skip", 1, 0, 1))
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    trace.save(path)
    return path.read_bytes()


def or_unreadable(content: bytes, folder) -> Trace | None:
    path = folder / "run.trace"
    path.write_bytes(content)
    try:
        return Trace.load(path)
    except ValueError as error:
        assert type(error) is ValueError
        assert "is not a readable gradrecipes trace" in str(error) or "is a trace of version" in str(error)
        assert str(path) in str(error)
        return None


@given(data=st.data())
def test_damaged_bytes_are_no_trace_and_the_error_says_so(whole, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["cut", "flip", "random", "empty"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "flip":
        place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
    else:
        damaged = b"" if kind == "empty" else data.draw(st.binary(max_size=400))
    read = or_unreadable(bytes(damaged), tmp_path_factory.mktemp("damaged"))
    if read is not None:  # a bit that carries nothing, as in the date of a file in the zip
        assert kind == "flip"
        np.testing.assert_array_equal(read.loss, [1.0, 0.5])
        assert read.layers == ("one", "two")


@given(data=st.data())
def test_a_member_of_another_kind_makes_no_trace(whole, tmp_path_factory, data):
    """The zip and its checksums are sound here, and what is in it is not."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from(sorted(members)))
    if name == "head.npy":
        head = json.loads(np.lib.format.read_array(io.BytesIO(members[name])).tobytes())
        head[data.draw(st.sampled_from(sorted(head)))] = data.draw(JSON)
        content = np.frombuffer(json.dumps(head).encode(), np.uint8)
    else:
        kinds = [np.dtype(kind) for kind in (np.float64, np.int8, np.complex64, np.bool_, "U3", "M8[s]", "V4")]
        shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        content = np.zeros(shape, data.draw(st.sampled_from(kinds)))
    members[name] = as_npy(content)
    if data.draw(st.booleans()):
        del members[data.draw(st.sampled_from(sorted(members)))]
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for member, body in members.items():
            archive.writestr(member, body)
    read = or_unreadable(changed.getvalue(), tmp_path_factory.mktemp("changed"))
    if read is not None:  # a column may be missing or hold other numbers; what was read is a whole trace all the same
        with heard() as said:
            gr.diagnose(read).to_json()
        assert not said, said


@given(data=st.data())
def test_a_damaged_state_of_a_guard_is_refused(tmp_path_factory, data):
    from gradrecipes.training.recovery.guard_state import NAME, load_guard_state, save_guard_state

    folder = tmp_path_factory.mktemp("guard")
    values = {"watch_0/values": np.arange(6.0)}
    save_guard_state(folder, values, iterations=7)
    whole = (folder / NAME).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / NAME).write_bytes(bytes(damaged[: data.draw(st.integers(0, len(whole)))]))
    try:
        read = load_guard_state(folder, iterations=7)
    except ValueError as error:
        assert "Received: a file that cannot be read" in str(error)
    else:
        assert read is None or np.array_equal(read["watch_0/values"], values["watch_0/values"])


class heard(logging.Handler):  # noqa: N801 - read as a word in a `with`
    """Hear what the engine says of a rule that failed: it goes on with the others."""

    def __enter__(self) -> list[str]:
        self.said: list[str] = []
        logging.getLogger("gradrecipes").addHandler(self)
        return self.said

    def __exit__(self, *_: object) -> None:
        logging.getLogger("gradrecipes").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.said.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def as_npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, allow_pickle=False)
    return stream.getvalue()
