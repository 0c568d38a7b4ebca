"""The file of a Trace: a zip of arrays with a JSON head, without pickle."""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradrecipes.core.trace.description import Description, LayerDescription
from gradrecipes.core.trace.probes import Probes
from gradrecipes.core.trace.record import field_types

FORMAT = "gradrecipes.trace"
VERSION = 2  # 1 kept the description and the probes as free dictionaries
_HEAD = "head"
_PARTS = ("layers", "description", "events", "version")
_SUFFIX = ".npy"


def write_trace_file(path: str | os.PathLike[str], *, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write arrays and meta data to one file; the file is whole or not there at all.

    Args:
        path: Where to write; missing folders are made, an older file is replaced.
        arrays: Numeric arrays by name.
        meta: JSON values; numpy numbers and arrays in it become numbers and lists.

    Raises:
        TypeError: `meta` holds something that JSON cannot.
    """
    path = Path(path)
    head = json.dumps({"format": FORMAT, "version": VERSION, **meta}, default=_as_json).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED) as archive:
            for name, values in {_HEAD: np.frombuffer(head, np.uint8), **arrays}.items():
                with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_trace_file(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, meta) of a file that `write_trace_file` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is no trace, or is of a later version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no trace at {str(path)!r}. Expected a file that Trace.save wrote; "
            "`gradrecipes watch` and `gradrecipes demo` print where they put theirs."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            head = _head(archive)
            if head["version"] <= VERSION:
                return _arrays(archive), {key: head[key] for key in _PARTS} | {"probes": head.get("probes", {})}
    except Exception as error:  # zipfile, zlib, json and numpy raise a dozen kinds on damaged bytes
        raise unreadable(path, error) from error
    raise ValueError(
        f"{str(path)!r} is a trace of version {head['version']}; this package reads up to version {VERSION}. "
        "Install a newer gradrecipes to read it."
    )


def unreadable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    """Return the error that says which file is no readable trace, why, and what to do."""
    return ValueError(
        f"{str(path)!r} is not a readable gradrecipes trace: {error or type(error).__name__}. "
        "Expected a file that Trace.save wrote; if it was copied from elsewhere, copy it again in binary mode."
    )


def _head(archive: zipfile.ZipFile) -> dict[str, Any]:
    if _HEAD + _SUFFIX not in archive.namelist():
        raise ValueError("it has no head")
    head = json.loads(_array(archive, _HEAD + _SUFFIX).tobytes())
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ValueError("its head is not that of a trace")
    if type(head.get("version")) is not int:
        raise ValueError(f"its version is {head.get('version')!r}, not a whole number")
    return head


def _arrays(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = [name for name in archive.namelist() if name != _HEAD + _SUFFIX]
    return {name.removesuffix(_SUFFIX): _array(archive, name) for name in names}


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # Read whole, so that zipfile compares the checksum: np.load stops at the last byte it needs and may not.
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(
        f"A trace holds plain JSON values in its description and in the details of its events. "
        f"Received: {value!r} of type {type(value).__name__}. Give a string, a number, a list or a dict instead."
    )


RENAMED = {"sound_data": "finite_data"}
OPTIMIZER_FIELDS = ("name", "learning_rate", "schedule", "nonfinite_slots")


def upgrade(description: Mapping[str, Any], probes: Mapping[str, Any]) -> tuple[Description, Probes]:
    """Return the records that version 1 kept as dictionaries.

    Args:
        description: `Trace.description` of version 1.
        probes: `Trace.probes` of version 1; its `structure` is now part of the description.

    Raises:
        ValueError: A value is of another kind than it was in version 1.
    """
    for name, values in (("description", description), ("probes", probes)):
        if not isinstance(values, Mapping):
            raise ValueError(f"its {name} is {values!r:.80}, not an object")
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
