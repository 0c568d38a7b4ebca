from dataclasses import replace

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.feed import read_feed
from gradrecipes.rescue.flaws import LEFT_OUT, MEDIAN, few_flawed, flaws_of
from gradrecipes.rescue.original import Setup

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)).astype("float32")
Y = X @ np.array([1.0, -2.0, 0.5, 1.5], "float32")
SETUP = Setup(batch_size=32, epochs=1)


def compiled(loss="mse", units=1, head=None):
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(16, "relu")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(units, activation=head)])
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def with_rows(array, value, *, column=None, count=12):
    array = array.copy()
    rows = RNG.choice(len(array), count, replace=False)
    array[rows if column is None else (rows, column)] = value
    return array


def read(x, y, loss="mse", *, units=1, head=None, found=()):
    feed, _ = read_feed(x, y, batch_size=32, validation_data=(X[:50], y[:50]))
    output = OutputDescription(target=0, units=units, loss=loss if isinstance(loss, str) else "own", shape=(units,))
    flaws = flaws_of(compiled(loss, units, head), feed, [output], (False,), found)
    return flaws, flaws.taken_out(feed)


@pytest.mark.parametrize(
    ("x", "y", "samples", "gaps"),
    [
        (X, Y, "", ""),
        (X, with_rows(Y, np.nan), "y not finite", ""),
        (X, with_rows(Y, -999.0), "y -999", ""),
        (X, with_rows(Y, 9_999_999.0, count=1), "y 1e+07", ""),  # far off, as no measurement is
        (X, with_rows(Y, 20.0, count=1), "", ""),  # an outlier
        (with_rows(X, 9999.0, column=2), Y, "x 9999", "9999"),
        (with_rows(X, np.inf, column=2), Y, "x not finite", "not finite"),
        (np.where(X > 2.0, np.float32(9.0), np.float32(0.0)), Y, "", ""),  # codes
        (X**9, Y, "", ""),  # heavy tails
    ],
)
def test_what_is_not_finite_or_marks_a_gap_is_found(x, y, samples, gaps):
    flaws, feed = read(x, y)
    assert (flaws.samples, flaws.gaps) == (samples, gaps)
    assert bool(feed.corrected) is bool(samples)


def in_logarithms(y, predicted):
    return keras.ops.mean(keras.ops.square(keras.ops.log(y) - predicted), axis=-1)


@pytest.mark.parametrize("found", [("unsafe_loss",), ()])
def test_targets_outside_of_the_domain_of_a_loss_are_found_where_a_finding_may_come_of_it(found):
    positive = np.exp(Y)[:, None]
    assert read(X, positive, in_logarithms, found=found)[0].samples == ""
    flaws, _ = read(X, with_rows(positive, 0.0), in_logarithms, found=found)
    assert flaws.samples == ("y 0 or below" if found else "")
    labels = with_rows(np.digitize(Y, [-1, 1]), 255)
    loss = "sparse_categorical_crossentropy"
    flaws, _ = read(X, labels, loss, units=3, head="softmax", found=found)
    assert flaws.samples == ("y 255" if found else "")


def test_samples_are_left_out_of_training_and_inputs_are_filled_everywhere():
    x, y = with_rows(X, np.nan, column=1), with_rows(Y, -999.0)
    _, feed = read(x, y)
    bad = np.isnan(x).any(axis=1)
    assert feed.under(OWN, OWN) is feed
    assert feed.under(LEFT_OUT, OWN).samples == (~(bad | (y == -999))).sum()
    full = feed.under(LEFT_OUT, MEDIAN)
    assert full.samples == (y != -999).sum()
    assert np.isfinite(full.x).all()
    assert len(feed.y_val) == (y[:50] != -999).sum()  # what cannot be predicted is no measure
    assert np.nanmedian(x[:, 1]) in feed.under(OWN, MEDIAN).x[bad, 1]


@pytest.mark.parametrize(("count", "kept"), [(1, True), (4, True), (60, False)])
def test_few_flawed_samples_are_not_held_back(count, kept):
    y = with_rows(Y, np.nan, count=count)
    feed, _ = read_feed(X, y, batch_size=32, trained=few_flawed)
    assert bool(np.isnan(feed.y).sum() == count) is kept
    assert len(feed.y_val) == 60


def test_the_lines_do_what_was_tried():
    x, y = with_rows(X, 9999.0, column=1), with_rows(Y, np.nan)
    flaws, feed = read(x, y)
    for settings in ({"samples": LEFT_OUT}, {"samples": LEFT_OUT, "gaps": MEDIAN}):
        code = code_of(SETUP, replace(SETUP, **settings), flaws=flaws)
        names = {"x": x, "y": y, "np": np}
        exec("\n".join(line.removeprefix("+ ") for line in code.splitlines() if line.startswith("+ ")), names)
        tried = feed.under(settings["samples"], settings.get("gaps", OWN))
        np.testing.assert_allclose(names["x"], tried.x)
        np.testing.assert_allclose(names["y"], tried.y)


def test_targets_that_mark_gaps_are_left_out_by_a_rescue():
    found = gr.rescue(compiled(), X, with_rows(Y, -999.0, count=20), epochs=30)
    assert (found.verdict, [change.name for change in found.changes]) == ("rescued", ["left_out"])
    assert "+ sound = (~np.isin(y, [-999]))" in found.as_code()
