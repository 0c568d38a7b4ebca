"""A callback that was pickled or copied before a fit works in it, and after a fit keeps what it recorded."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import digits, seeded, two_dense

WAYS = {"pickle": lambda one: pickle.loads(pickle.dumps(one)), "deepcopy": copy.deepcopy}  # joblib pickles
CALLBACKS = [gr.GradientGuard, gr.GradientMonitor, gr.BlackBox, gr.Doctor]


@pytest.mark.parametrize(("make", "way"), [*((make, "pickle") for make in CALLBACKS), (gr.GradientGuard, "deepcopy")])
def test_trace_and_events_survive_and_the_next_fit_begins_a_record(make, way):
    x, y = digits(96)
    x[40] = np.nan
    callback = WAYS[way](make())
    seeded(two_dense).fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[callback])
    again = WAYS[way](callback)
    assert len(again.trace) == len(callback.trace) > 0
    np.testing.assert_array_equal(again.trace.gradient_norm, callback.trace.gradient_norm)
    assert [str(event) for event in again.trace.events] == [str(event) for event in callback.trace.events]
    if make is gr.GradientGuard:
        assert [event.kind for event in again.events] == ["skip"]
    seeded(two_dense, keras.optimizers.SGD(0.1)).fit(x[:32], y[:32], batch_size=32, verbose=0, callbacks=[again])
    assert len(again.trace) == 1
