"""What the rules are told of a run: all of a real description, and of an odd one what makes sense."""

from __future__ import annotations

import keras
import pytest

import gradrecipes as gr
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.description import KINDS, KINDS_OF_LAYERS, understood
from tests.training.nets import compiled, digits, two_dense, with_state


@pytest.mark.parametrize("net", [two_dense, with_state])
def test_a_description_that_the_monitor_wrote_is_understood_whole(net):
    monitor = gr.GradientMonitor()
    x, y = digits(64)
    compiled(net()).fit(x, y, verbose=0, callbacks=[monitor])
    assert understood(monitor.trace).description == monitor.trace.description
    for layer in monitor.trace.description["layers"]:
        assert set(layer) == set(KINDS_OF_LAYERS)
    assert set(KINDS) - {"batch_size"} <= set(monitor.trace.description)


def test_entries_of_another_kind_are_not_known_and_the_record_itself_is_untouched():
    layers = [{"name": "one", "units": 4, "fan_in": "many"}, {"units": 2}, {"name": 3}, None, "two"]
    odd = {"optimizer": None, "learning_rate": float("nan"), "batch_size": True, "layers": layers, "extra": object}
    trace = Trace(["one"], description=odd)
    view = understood(trace)
    assert view.description == {"optimizer": None, "layers": [{"name": "one", "units": 4}], "extra": object}
    assert trace.description == odd
    assert view.steps is trace.steps


@pytest.mark.parametrize("listed", [None, "layers", {"one": {}}, 3])
def test_layers_that_are_no_list_are_none(listed):
    assert "layers" not in understood(Trace(description={"layers": listed})).description


def test_an_optimizer_of_several_and_losses_of_several_are_understood():
    inputs = keras.Input((64,))
    outputs = [keras.layers.Dense(10, name="a")(inputs), keras.layers.Dense(10, name="b")(inputs)]
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)), loss=["mse", "mae"])
    monitor = gr.GradientMonitor()
    x, _ = digits(64)
    model.fit(x, [x[:, :10], x[:, :10]], verbose=0, callbacks=[monitor])
    assert understood(monitor.trace).description == monitor.trace.description
