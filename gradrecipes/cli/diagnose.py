"""`gradrecipes diagnose`: what is wrong with the training that a function returns, before it is run."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradrecipes.cli.report import print_diagnosis, write_page
from gradrecipes.cli.target import load_training
from gradrecipes.cli.terminal import PartsShown, UsageError, silence_tensorflow_notes

if TYPE_CHECKING:
    from gradrecipes.report.diagnosis import Diagnosis

# Of what the function tells, by gradrecipes.diagnose.
TAKEN = ("sample_weight", "class_weight", "batch_size", "validation_data", "seed", "epochs")


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
    with PartsShown(quiet=arguments.json) as parts:
        parts.tell(f"loading {arguments.target}")
        # What the user's program prints must not stand between the lines of a JSON document.
        with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
            training = load_training(arguments.target)
            if arguments.batch_size is not None:
                training["batch_size"] = arguments.batch_size
            diagnosis = _diagnose(training, parts)
    if arguments.json:
        print(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis, full=arguments.full)
    if arguments.trace is not None:
        _keep(diagnosis, arguments.trace)
    if arguments.html is not None:
        write_page(diagnosis, arguments.html, needed=True)
    return 1 if diagnosis.verdict == "unhealthy" else 0


def _diagnose(training: dict[str, Any], parts: PartsShown) -> Diagnosis:
    from gradrecipes.doctor import diagnose

    options = {name: training[name] for name in TAKEN if training.get(name) is not None}
    logging.getLogger("gradrecipes").setLevel(logging.ERROR)
    try:
        return diagnose(training["model"], training["x"], training["y"], tell=parts.tell, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _keep(diagnosis: Diagnosis, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        diagnosis.trace.save(path)
    except OSError as error:
        raise UsageError(f"The trace cannot be written to {str(path)!r}: {error}. Choose another place.") from error
    print(f"Trace: {path}", file=sys.stderr)
