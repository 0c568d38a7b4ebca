"""The command `gradrecipes`: a table of commands, each a module that is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gradrecipes import __version__
from gradrecipes.cli.terminal import UsageError

HEALTHY, UNHEALTHY, WRONG_USE = 0, 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + the number of the signal, as shells have it

# command -> (module with add_arguments(parser) and run(arguments) -> int, one line for --help)
COMMANDS = {
    "demo": ("gradrecipes.cli.demo", "show a training that dies, why, and the repair, on real data"),
    "watch": ("gradrecipes.cli.watch", "run an unchanged Keras script with every fit in it monitored, then diagnose"),
    "diagnose": ("gradrecipes.cli.diagnose", "say what is wrong with a model and its data, before they are trained"),
    "rescue": ("gradrecipes.cli.rescue", "find by trials the smallest set of changes that makes a training work"),
    "tune": ("gradrecipes.cli.tune", "search for settings that train, and survive those that diverge"),
    "report": ("gradrecipes.cli.report", "say what a saved trace means, and write it as one HTML page"),
    "recipes": ("gradrecipes.cli.recipes", "list the six best practices and what each of them was measured to do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What stands after `gradrecipes` on the command line; None for that of this process.

    Returns:
        0 for a healthy training or a command that is done, 1 for an unhealthy training, 2 for wrong use.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an old terminal must not turn a report into a UnicodeEncodeError
    logger = logging.getLogger("gradrecipes")
    level = logger.level
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"gradrecipes: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("gradrecipes: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, as in `gradrecipes report trace | head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    finally:
        logger.setLevel(level)  # a command may have muted warnings of the trainings that it runs


def leave() -> NoReturn:
    """Run the command of this process and end it with the exit code."""
    sys.exit(main())


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gradrecipes",
        description="Detect, explain, prevent and recover from exploding gradients in Keras.",
        epilog="Exit codes: 0 healthy, done or undecided, 1 the training is unhealthy, 2 wrong use.",
    )
    parser.add_argument("--version", action="version", version=f"gradrecipes {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="command", required=True)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    command = None
    for name, (module, line) in COMMANDS.items():
        subparser = choices.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        if name == called:  # only the called one is imported, so that --help stays fast
            command = importlib.import_module(module)
            command.add_arguments(subparser)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed help, the version, or what is wrong with the arguments
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    return command.run(parsed)
