"""Whatever comes as an argument is taken, or refused in words that say what came; damaged traces likewise."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gradrecipes as gr
from gradrecipes.core.trace import Trace
from gradrecipes.gradients.clipping import METHODS

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just((1.0, 2.0)),
    st.just(np.float32(1.0)),
    st.just(np.array([1.0, 2.0])),
    st.just(object()),
    st.just(gr.clipping.by_global_norm),
    st.just(gr.clipping.by_global_norm(1.0)),
)

NAMES = {
    gr.GradientMonitor: ["sample_every"],
    gr.GradientGuard: ["clipping", "sigmas", "max_consecutive_skips", "snapshot_every", "max_rollbacks"],
    gr.BlackBox: ["recordings"],
    gr.clipping.by_global_norm: ["max_norm"],
    gr.clipping.by_norm: ["max_norm"],
    gr.clipping.by_value: ["max_value"],
    gr.clipping.adaptive: ["max_ratio", "min_weight_norm"],
    gr.clipping.by_percentile: ["percentile", "window", "max_norm"],
    gr.clipping.by_z_score: ["threshold", "decay", "warm_up", "max_norm"],
    gr.clipping.adaptive_by_tensor: ["max_ratio", "decay", "warm_up", "max_norm"],
}


def make_model(**how):
    inputs = keras.Input((2,))
    return gr.RecipeModel(inputs, keras.layers.Dense(1)(inputs), **how)


def make_pipeline(**how):
    return gr.GradientPipeline(**{"optimizer": keras.optimizers.SGD(0.1), **how})


def or_refused(make, arguments):
    """Make it, or check the refusal; return whether it was made."""
    try:
        make(**arguments)
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError)
        assert "Received" in str(error), f"{make}({arguments}) says: {error}"
        return False
    return True


def parameters():
    return [pytest.param(make, name, id=f"{make.__name__}-{name}") for make, names in NAMES.items() for name in names]


def test_every_argument_of_every_clipping_method_is_in_the_table():
    assert {make for make in NAMES if hasattr(make, "__dataclass_fields__")} == set(METHODS)
    for method in METHODS:
        assert set(NAMES[method]) == set(method().get_config())


@pytest.mark.parametrize(("make", "name"), parameters())
def test_each_argument_is_taken_or_refused_in_words(make, name):
    taken = []

    @given(value=ODD)
    @example(value=float("nan"))
    @example(value=-1)
    @example(value=0)
    @example(value="1.0")
    @example(value=True)
    def run(value):
        taken.append((value, or_refused(make, {name: value})))

    run()
    assert not any(was_taken for value, was_taken in taken if isinstance(value, str | bool | list | dict))
    assert not any(was_taken for value, was_taken in taken if isinstance(value, float) and np.isnan(value))


@given(value=ODD)
def test_the_clipping_of_a_recipe_model_is_a_method_or_refused(value):
    is_method = value is None or isinstance(value, gr.clipping.by_global_norm)
    assert isinstance(value, dict) or or_refused(make_model, {"clipping": value}) == is_method


@given(value=ODD, optimizer=ODD)
def test_a_pipeline_by_hand_takes_an_optimizer_and_a_method(value, optimizer):
    assert not or_refused(make_pipeline, {"optimizer": optimizer})
    or_refused(make_pipeline, {"clipping": value})


@given(value=ODD)
def test_what_is_neither_a_trace_nor_a_model_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="Received"):
        gr.diagnose(value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    trace = Trace(["one", "two"], description={"layers": [{"name": "one"}, {"name": "two"}]})
    trace.extend(step=[0, 1], loss=[1.0, 0.5], gradient_norm=[1.0, np.inf], layer_gradient_norm=[[1, 0], [np.nan, 1]])
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    trace.save(path)
    return path.read_bytes()


@given(data=st.data())
def test_damaged_bytes_are_no_trace_and_the_error_says_so(whole, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["cut", "flip", "random", "empty"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "flip":
        place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        damaged = bytes(damaged)
    else:
        damaged = b"" if kind == "empty" else data.draw(st.binary(max_size=400))
    path = tmp_path_factory.mktemp("damaged") / "run.trace"
    path.write_bytes(damaged)
    try:
        read = Trace.load(path)
    except ValueError as error:
        assert "is not a readable gradrecipes trace" in str(error) or "is a trace of version" in str(error)
        assert str(path) in str(error)
    else:  # a bit that carries nothing, as in the date of a file in the zip
        assert kind == "flip"
        np.testing.assert_array_equal(read.loss, [1.0, 0.5])
        assert read.layers == ("one", "two")


@given(data=st.data())
def test_a_damaged_state_of_a_guard_is_refused(tmp_path_factory, data):
    from gradrecipes.training.guard_state import NAME, load_guard_state, save_guard_state

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
