"""How a Trace lies on disk: one zip of numpy arrays with a JSON head, opened without pickle."""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "gradrecipes.trace"
VERSION = 2  # 1 kept the description and the probes as free dictionaries; see version_1.py
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
