"""`gradrecipes diagnose`: what is wrong with the training that a function returns, before it is run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradrecipes.cli.report import print_diagnosis, write_page
from gradrecipes.cli.target import ask_of_training
from gradrecipes.cli.terminal import UsageError, silence_tensorflow_notes

if TYPE_CHECKING:
    from gradrecipes.report.diagnosis import Diagnosis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes diagnose` takes."""
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="a function that returns (model, x, y), the model compiled; also path/to/file.py:function",
    )
    parser.add_argument("--batch-size", type=int, metavar="SAMPLES", help="default: what the function tells, else 32")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write the report as one HTML page, too")
    parser.add_argument("--trace", type=Path, metavar="PATH", help="keep what was measured, for `gradrecipes report`")
    parser.add_argument("--full", action="store_true", help="print every finding with its evidence and remedies")
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Load model and data, diagnose them, print what was found; return 0 for a healthy training, else 1."""
    silence_tensorflow_notes()
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1 sample. Received: {arguments.batch_size}.")
    from gradrecipes.doctor import diagnose

    diagnosis = ask_of_training(arguments.target, diagnose, quiet=arguments.json, batch_size=arguments.batch_size)
    if arguments.json:
        print(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis, full=arguments.full)
    if arguments.trace is not None:
        _keep(diagnosis, arguments.trace)
    if arguments.html is not None:
        write_page(diagnosis, arguments.html, needed=True)
    return 1 if diagnosis.verdict == "unhealthy" else 0


def _keep(diagnosis: Diagnosis, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        diagnosis.trace.save(path)
    except OSError as error:
        raise UsageError(f"The trace cannot be written to {str(path)!r}: {error}. Choose another place.") from error
    print(f"Trace: {path}", file=sys.stderr)
