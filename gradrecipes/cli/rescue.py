"""`gradrecipes rescue`: the training that works, found by trials, for the one that a function returns."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradrecipes.cli.target import ask_of_training
from gradrecipes.cli.terminal import UsageError, silence_tensorflow_notes

if TYPE_CHECKING:
    from gradrecipes.rescue.verdict import Rescue

DEFAULT_EPOCHS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes rescue` takes."""
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="a function that returns (model, x, y), the model compiled, or a dict; also path/to/file.py:function",
    )
    parser.add_argument("--epochs", type=int, help=f"default: what the function returns, else {DEFAULT_EPOCHS}")
    parser.add_argument(
        "--budget",
        type=int,
        metavar="STEPS",
        help="training steps in all, never exceeded; default: five trainings, or more of a short one, up to ten",
    )
    parser.add_argument("--journal", type=Path, metavar="PATH", help="keep results here, and resume from them")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the answer as one HTML page, too")
    parser.add_argument("--save", type=Path, metavar="PATH", help="save the repaired, untrained model (.keras)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Load model and data, search, print the answer; return 1 for not rescued, else 0."""
    silence_tensorflow_notes()
    for name in ("epochs", "budget"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1. Received: {value}.")
    chosen = {name: getattr(arguments, name) for name in ("epochs", "budget", "journal")}
    answer = ask_of_training(arguments.target, _rescue, quiet=arguments.json, **chosen)
    print(answer.to_json() if arguments.json else answer)
    _keep(answer, arguments)
    return 1 if answer.verdict == "not rescued" else 0


def _rescue(*subject: Any, **options: Any) -> Rescue:
    from gradrecipes.rescue.entry import rescue  # after the user's program, which may set what Keras reads first

    return rescue(*subject, **{"epochs": DEFAULT_EPOCHS, **options})


def _keep(answer: Rescue, arguments: argparse.Namespace) -> None:
    try:
        if arguments.html is not None:
            answer.save_html(arguments.html)
        if arguments.save is not None:
            arguments.save.parent.mkdir(parents=True, exist_ok=True)
            answer.model.save(arguments.save)
    except (OSError, ValueError) as error:
        raise UsageError(f"The answer cannot be written: {error}. Choose another place.") from error
