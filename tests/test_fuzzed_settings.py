"""Whatever comes as an argument is taken, or refused in words that say what came; what is taken can run."""

from __future__ import annotations

import inspect
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradrecipes as gr
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
    st.just(10**400),
    st.just(gr.clipping.by_global_norm),
    st.just(gr.clipping.by_global_norm(1.0)),
)
X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def make_model(**how):
    inputs = keras.Input((2,))
    return gr.RecipeModel(inputs, keras.layers.Dense(1)(inputs), **how)


def make_pipeline(**how):
    return gr.GradientPipeline(**{"optimizer": keras.optimizers.SGD(0.1), **how})


def make_advisor(**how):
    return gr.BatchSizeAdvisor(**{"x": X, "y": Y, "batch_size": 4, **how})


# Of each: what makes it, the arguments, and those of them that Keras itself has no rule for.
NAMES = {
    gr.GradientMonitor: ["sample_every", "logs", "histogram_dir", "log_layers", "log_layers_every"],
    gr.GradientGuard: [
        "clipping", "sigmas", "max_consecutive_skips", "snapshot_every", "max_rollbacks", "snapshot_on",
        "skipped_batches", "backup_dir", "fused", "raise_error",
    ],
    gr.BlackBox: ["directory", "recordings"],
    gr.Doctor: ["data", "check_every", "stop", "on_finding"],
    gr.LearningRateFinder: ["lowest", "highest", "batches"],
    gr.NanProofEarlyStopping: [
        "monitor", "min_delta", "patience", "verbose", "mode", "baseline", "restore_best_weights", "start_from_epoch",
    ],
    make_advisor: ["x", "y", "batch_size", "batches", "every", "seed"],
    make_model: ["clipping", "skip_nonfinite", "penalty", "fused"],
    make_pipeline: ["optimizer", "clipping", "skip_nonfinite", "xla"],
    gr.clipping.by_global_norm: ["max_norm"],
    gr.clipping.by_norm: ["max_norm"],
    gr.clipping.by_value: ["max_value"],
    gr.clipping.adaptive: ["max_ratio", "min_weight_norm"],
    gr.clipping.by_percentile: ["percentile", "window", "max_norm"],
    gr.clipping.by_z_score: ["threshold", "decay", "warm_up", "max_norm"],
    gr.clipping.adaptive_by_tensor: ["max_ratio", "decay", "warm_up", "max_norm"],
}  # fmt: skip
MADE_BY = {make_advisor: gr.BatchSizeAdvisor, make_pipeline: gr.GradientPipeline, make_model: gr.RecipeModelMixin}
FLAGS = (
    "logs",
    "skip_nonfinite",
    "fused",
    "raise_error",
    "xla",
    "restore_best_weights",
    "verbose",
    "stop",
)  # True and False are sense there
WORDS = ("histogram_dir", "directory", "backup_dir", "skipped_batches", "log_layers", "monitor", "mode")


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


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_argument_is_in_the_table(make):
    signature = inspect.signature(MADE_BY.get(make, make))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert NAMES[make] == [name for name, one in signature.parameters.items() if one.kind not in variadic]


def test_every_clipping_method_and_callback_is_in_the_table():
    made = [MADE_BY.get(make, make) for make in NAMES]
    assert {make for make in made if hasattr(make, "__dataclass_fields__")} == set(METHODS)
    public = [getattr(gr, name) for name in gr.__all__ if isinstance(getattr(gr, name), type)]
    assert {one for one in public if issubclass(one, keras.callbacks.Callback)} <= set(made)


@pytest.mark.parametrize(("make", "name"), parameters())
def test_each_argument_is_taken_or_refused_in_words(make, name):
    taken = []

    @settings(max_examples=20)  # of 15 kinds, for each of some sixty arguments
    @given(value=ODD)
    @example(value=float("nan"))
    @example(value=-1)
    @example(value=0)
    @example(value="1.0")
    @example(value=True)
    @example(value=10**400)
    def run(value):
        taken.append((value, or_refused(make, {name: value})))

    run()
    nonsense = [list, *([] if name in FLAGS else [bool]), *([] if name in WORDS else [str])]
    assert not any(was_taken for value, was_taken in taken if isinstance(value, tuple(nonsense)))
    assert not any(was_taken for value, was_taken in taken if isinstance(value, float) and np.isnan(value))


EXTREME = [1e-300, 1e-39, 1.2e-38, 1e-20, 0.5, 1, 99, 1e15, 3e38, 1e39, 2**31 - 1, 2**31, 10**20, 10**30, 10**400]
ORDINARY, LARGE, NONE = [1.0, 2.0], [1e15, 1.0], [0.0, 0.0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_what_a_clipping_method_takes_can_run(method):
    variable = keras.Variable(np.ones(2, "float32"))
    for name, value in itertools.product(NAMES[method], EXTREME):
        if not or_refused(method, {name: value}):
            continue
        variable.assign([1.0, 1.0])
        pipeline = gr.GradientPipeline(keras.optimizers.SGD(0.1), clipping=method(**{name: value}))
        for gradient in (ORDINARY, LARGE, NONE):
            outcome = pipeline.apply([tf.constant(gradient)], [variable], loss=tf.constant(1.0))
            assert int(outcome.outcome) == 0
            assert 0 <= float(outcome.clip_factor) <= 1, f"{method.__name__}({name}={value!r}) of {gradient}"
        assert np.isfinite(np.array(variable)).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")  # so says Keras where one is None
@settings(max_examples=25)
@example(sizes=[2, None], variables=2, loss=None)
@example(sizes=[2, 1], variables=2, loss=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 3), st.just("")), max_size=3), st.integers(0, 3), ODD)
def test_a_loop_by_hand_takes_what_fits_and_names_what_does_not(sizes, variables, loss):
    pipeline = make_pipeline()
    gradients = [size if size in (None, "") else tf.ones([size]) for size in sizes]
    known = [keras.Variable(np.ones(2, "float32")) for _ in range(variables)]
    taken = or_refused(pipeline.apply, {"gradients": gradients, "variables": known, "loss": loss})
    fits = len(sizes) == variables and set(sizes) <= {None, 2} and 2 in sizes
    assert fits or not taken
    assert taken or not fits or loss is not None


EXTREME_ARGUMENTS = {
    "huge": {"sigmas": 3e38, "max_consecutive_skips": 10**30, "snapshot_every": 10**30, "max_rollbacks": 10**30},
    "tiny": {"sigmas": 1.2e-38, "max_consecutive_skips": 1, "snapshot_every": 1, "max_rollbacks": 0},
    "none": {"sigmas": None, "max_consecutive_skips": 1, "snapshot_every": None, "max_rollbacks": 0},
}


@pytest.mark.parametrize(("how", "sample_every"), [("huge", 10**30), ("tiny", 1), ("none", 10**30)])
def test_what_a_guard_and_a_monitor_take_can_run(how, sample_every):
    model = make_model(clipping=None)
    model.compile("sgd", "mse")
    guard, monitor = gr.GradientGuard(**EXTREME_ARGUMENTS[how]), gr.GradientMonitor(sample_every=sample_every)
    x = X * np.arange(1, 9, dtype="float32")[:, None] / 8
    model.fit(x, Y, batch_size=1, epochs=3, verbose=0, callbacks=[monitor, guard])
    assert all(map(math.isfinite, guard.trace.loss))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@given(value=ODD)
def test_what_is_neither_a_trace_nor_a_model_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="Received"):
        gr.diagnose(value)
