"""The table of prescriptions: whole entries, Keras lines that parse, none that no rule uses."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest

import gradrecipes.diagnosis
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description, LayerDescription
from gradrecipes.core.trace.probes import WeightScale
from gradrecipes.diagnosis.prescriptions import (
    add_residual_blocks,
    change_activation,
    normalize_before_the_activation,
    prescription,
    texts,
    use_fitting_initializer,
)

SOURCES = "".join(path.read_text() for path in Path(gradrecipes.diagnosis.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("key", texts())
def test_an_entry_says_what_why_and_at_what_risk(key):
    entry = texts()[key]
    assert {"title", "code", "reason", "risk"} <= set(entry) <= {"title", "code", "reason", "risk", "reference"}
    assert all(entry.values())


@pytest.mark.parametrize("key", texts())
def test_the_lines_are_python_whatever_is_filled_in(key):
    names = set().union(*(Template(text).get_identifiers() for text in texts()[key].values()))
    filled = prescription(key, **dict.fromkeys(names, "name"))
    ast.parse(filled.code)
    assert "$" not in filled.title + filled.code + filled.reason + filled.risk


@pytest.mark.parametrize("key", texts())
def test_no_entry_is_left_over(key):
    assert f'"{key}"' in SOURCES


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(KeyError, match="fewer"):
        prescription("fewer_layers", depth=20)


def _change_to_relu(trace):
    return change_activation(trace, "sigmoid", "relu")[0]


@pytest.mark.parametrize("advise", [normalize_before_the_activation, add_residual_blocks, _change_to_relu])
@pytest.mark.parametrize(("own", "named"), [(5, "Linear"), (0, "Dense")])
def test_advice_on_layers_is_of_the_kind_that_the_net_is_made_of(advise, own, named):
    trace = Trace()
    layers = [LayerDescription(f"linear_{place}", "Linear", parameters=4160, custom=True) for place in range(own)]
    trace.description = Description(layers=(*layers, LayerDescription("head", "Dense", units=10, parameters=650)))
    code = advise(trace).code
    ast.parse(code)
    assert named in code + advise(trace).title and ("keras.layers.Dense" in code) == (named == "Dense")


def test_an_initializer_for_a_matrix_of_an_own_layer_is_said_of_that_layer():
    weight = WeightScale("linear/w", layer="linear", kind="Linear", role="matrix")
    assert "keras.layers.Linear" not in use_fitting_initializer([weight], "relu").code
    assert "keras.layers.Dense" in use_fitting_initializer([replace(weight, kind="Dense", role="kernel")], "relu").code
