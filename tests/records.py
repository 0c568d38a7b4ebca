"""Write the records of a Trace by hand, as short dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy, LayerReading, Offender
from gradrecipes.core.trace.description import Description, LayerDescription
from gradrecipes.core.trace.probes import Probes
from gradrecipes.core.trace.record import field_types
from gradrecipes.core.trace.trial_reading import TrialReading


def described(values: Mapping[str, Any]) -> Description:
    """Return the description that these values stand for."""
    return records(values, {})[0]


def with_records(trace: Trace, description: Mapping[str, Any], probes: Mapping[str, Any]) -> Trace:
    """Return the trace, with the description and the probes that these values stand for."""
    trace.description, trace.probes = records(description, probes)
    return trace


def set_autopsy(trace: Trace, *offenders: Offender, layers: tuple[LayerReading, ...] = ()) -> Trace:
    """Return the trace, with an autopsy of its trial that found these offenders."""
    trial = replace(trace.probes.trial or TrialReading(), autopsy=Autopsy(offenders, layers))
    trace.probes = replace(trace.probes, trial=trial)
    return trace


RENAMED = {"sound_data": "finite_data"}
OPTIMIZER_FIELDS = ("name", "learning_rate", "schedule", "nonfinite_slots")


def records(description: Mapping[str, Any], probes: Mapping[str, Any]) -> tuple[Description, Probes]:
    """Return the records that short dictionaries stand for."""
    structure = _mapping(probes.get("structure"))
    return (
        Description.from_json(_description(description, structure)),
        Probes.from_json(_probes(probes, _mapping(structure.get("optimizer")))),
    )


def _description(old: Mapping[str, Any], structure: Mapping[str, Any]) -> dict[str, Any]:
    named = {"model", "loss", "precision", "batch_size", "keras", "tensorflow"}
    found = {name: value for name, value in old.items() if name in named and value is not None}
    found["layers"] = [
        {name: value for name, value in layer.items() if name in field_types(LayerDescription)}
        for layer in old.get("layers") or []
    ]
    optimizer = {**_mapping(structure.get("optimizer")), **_mapping(old.get("optimizer"))}
    if optimizer or old.get("learning_rate") is not None:
        found["optimizer"] = _optimizer(old, optimizer)
    skipped = {"optimizer", "subclassed", "precision", "batch_normalizations_on_plain"}
    found |= {name: value for name, value in structure.items() if name not in skipped}
    found["plain_batch_normalizations"] = structure.get("batch_normalizations_on_plain")
    return found


def _optimizer(old: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    rate, configured = old.get("learning_rate"), optimizer.get("learning_rate")
    schedule = configured.get("class_name") if isinstance(configured, Mapping) else None
    return {
        "name": str(optimizer.get("name", "")),
        "learning_rate": configured if rate is None and not isinstance(configured, Mapping) else rate,
        "schedule": schedule,
        "loss_scaler": old.get("scaler"),
        "settings": {name: value for name, value in optimizer.items() if name not in OPTIMIZER_FIELDS},
    }


def _probes(old: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in old.items() if name not in ("structure", "signal", "sweep", "trial")}
    for name in ("data", "validation"):
        if name in found:
            found[name] = _data(_mapping(found[name]))
    signal = _mapping(old.get("signal"))
    found |= {"signal": signal.get("before"), "signal_after": signal.get("after"), "forward_pass": old.get("sweep")}
    if "sharpness" in found:
        found["sharpness"] = _without(_mapping(found["sharpness"]), "ratio", "highest_learning_rate")
    if "nonfinite_slots" in optimizer:
        found["nonfinite_slots"] = optimizer["nonfinite_slots"]
    if "trial" in old:
        found["trial"] = _trial(_mapping(old["trial"]))
    if found.get("autopsy") is not None:
        found["autopsy"] = _autopsy(_mapping(found["autopsy"]))
    return found


def _data(old: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for part in ("inputs", "targets", "sample_weight"):
        found[part] = [_array_reading(_mapping(array)) for array in old.get(part) or []]
    return found


def _array_reading(old: Mapping[str, Any]) -> dict[str, Any]:
    return _without(old, "rms_sound") | {"rms_without_outliers": old.get("rms_sound")}


def _trial(old: Mapping[str, Any]) -> dict[str, Any]:
    varied = {
        RENAMED.get(name, name): _without(_mapping(result), "over_chance")
        | {"over_baseline": result.get("over_chance")}
        for name, result in _mapping(old.get("varied")).items()
    }
    found = _without(old, "chance", "varied") | {"constant_baseline_loss": old.get("chance"), "variations": varied}
    if found.get("autopsy") is not None:
        found["autopsy"] = _autopsy(_mapping(found["autopsy"]))
    return found


def _autopsy(old: Mapping[str, Any]) -> dict[str, Any]:
    layers = [_without(_mapping(layer), "growth") for layer in old.get("layers") or []]
    return {**old, "layers": layers}


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
