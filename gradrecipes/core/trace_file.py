"""How a Trace lies on disk: one zip of numpy arrays with a JSON head, opened without pickle."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "gradrecipes.trace"
VERSION = 1
_HEAD = "head"


def write_trace_file(path: str | os.PathLike[str], *, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write arrays and meta data to one file; the file is whole or not there at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"format": FORMAT, "version": VERSION, **meta}).encode()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **{_HEAD: np.frombuffer(head, np.uint8)}, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
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
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or _HEAD not in archive.files:
                raise ValueError("it has no head")
            head = json.loads(archive[_HEAD].tobytes())
            arrays = {name: archive[name] for name in archive.files if name != _HEAD}
        if head.get("format") != FORMAT:
            raise ValueError(f"its format is {head.get('format')!r}")
        version = head["version"]
        meta = {key: head[key] for key in ("layers", "description", "events")}
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r} is not a readable gradrecipes trace: {error}. Expected a file that Trace.save wrote; "
            "if it was copied from elsewhere, copy it again in binary mode."
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{str(path)!r} is a trace of version {version}; this package reads up to version {VERSION}. "
            "Install a newer gradrecipes to read it."
        )
    return arrays, meta
