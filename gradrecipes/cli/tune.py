"""`gradrecipes tune`: search for settings that train, on one process or on many, and survive those that diverge."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradrecipes.cli.target import load_named, print_traceback, what
from gradrecipes.cli.terminal import UsageError, silence_tensorflow_notes

if TYPE_CHECKING:
    from gradrecipes.tuning.launcher import Worker
    from gradrecipes.tuning.results import SearchResults

PLACES = ("build", "x", "y", "validation_data")
OPTIONS = ("batch_size", "epochs", "seed")
EXPECTED = (
    "Expected (build, x, y) or (build, x, y, validation_data), or a dict with these names and, as wanted, "
    "'batch_size', 'epochs', 'seed'. `build` is a function of hp that returns a compiled model, a "
    "gr.tuning.RecipeHyperModel, or a compiled model whose learning rate, batch size and clipping are to be searched."
)
TUNERS = ("bayesian", "random", "hyperband", "grid")
VALIDATION_SPLIT = 0.2  # of the data, where the function brings none for validation
SEARCH = "search"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes tune` takes."""
    parser.epilog = (
        f"{EXPECTED} Exit codes: 0 done, 1 every trial failed, 2 wrong use. On several machines run the same command "
        "on each, with KERASTUNER_TUNER_ID (chief, worker-0, ...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT "
        "set, and --out on a disk that all of them see."
    )
    parser.add_argument(
        "target", metavar="MODULE:FUNCTION", help="a function that returns (build, x, y); also path/to/file.py:function"
    )
    parser.add_argument("--tuner", choices=TUNERS, default="bayesian", help="the strategy (default: bayesian)")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="default: 20; Hyperband goes by --epochs")
    parser.add_argument("--epochs", type=int, metavar="N", help="of a trial (default: the function's, else 10)")
    parser.add_argument("--objective", default="val_loss", help="what is optimized (default: val_loss)")
    parser.add_argument("--seed", type=int, metavar="N", help="default: what the function tells, else 0")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that train (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/tune"), metavar="DIR", help="default: out/tune")
    parser.add_argument("--resume", action="store_true", help="go on with the search that is in --out")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Search, tell what was found; return 0 if a trial worked, else 1."""
    silence_tensorflow_notes()
    for name in ("trials", "workers", "epochs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1. Received: {value}.")
    in_crew = "KERASTUNER_ORACLE_IP" in os.environ
    if in_crew and arguments.workers > 1:
        raise UsageError("KERASTUNER_ORACLE_IP is set: this process is one of many already. Leave --workers out.")
    failure = None
    with contextlib.redirect_stdout(sys.stderr):  # of the user's program, and of keras-tuner
        if arguments.workers > 1:
            _search_in_crew(arguments)
        else:
            failure = _search(arguments)
    if in_crew and "chief" not in os.environ["KERASTUNER_TUNER_ID"]:
        return 0  # the chief tells
    return _tell(arguments, failure)


# -- the search --------------------------------------------------------------------------------------
def _search(arguments: argparse.Namespace) -> str | None:
    """Search in this process; return why the search was given up, or None."""
    target = _load(arguments.target)
    from gradrecipes.tuning import TUNERS as STRATEGIES
    from gradrecipes.tuning import RecipeHyperModel, SearchError, spaces

    logging.getLogger("gradrecipes").setLevel(logging.ERROR)
    seed = arguments.seed if arguments.seed is not None else target.get("seed", 0)
    epochs = arguments.epochs or target.get("epochs", 10)
    build = target["build"]
    if not hasattr(build, "declare_hyperparameters"):
        is_model = hasattr(build, "compiled")
        batch_size = target.get("batch_size", spaces.batch_size if is_model else None)
        build = _checked(lambda: RecipeHyperModel(build, batch_size=batch_size, seed=seed))
    budget = {"max_epochs": epochs} if arguments.tuner == "hyperband" else {"max_trials": arguments.trials}
    place = {"directory": str(arguments.out), "project_name": SEARCH, "overwrite": not arguments.resume}
    with _Bar(arguments) as bar:
        tuner = _checked(
            lambda: STRATEGIES[arguments.tuner](build, arguments.objective, seed=seed + 1, **budget, **place)
        )
        tuner.on_outcome = lambda outcome: bar.advance(failed=outcome.status == "failed")
        try:
            tuner.search(target["x"], target["y"], epochs=epochs, **_validation(target))
        except SearchError as error:
            return str(error)
    return None


def _load(name: str) -> dict[str, Any]:
    target = load_named(name, PLACES, OPTIONS, EXPECTED)
    if not callable(target["build"]) and not hasattr(target["build"], "declare_hyperparameters"):
        raise UsageError(f"{name!r} returned {what(target['build'])} in the place of build. {EXPECTED}")
    return target


def _validation(target: dict[str, Any]) -> dict[str, Any]:
    if target.get("validation_data") is not None:
        return {"validation_data": target["validation_data"]}
    if not hasattr(target["x"], "shape"):
        raise UsageError(
            "A dataset cannot be split for validation. Let the function return (build, dataset, None, validation_data)."
        )
    return {"validation_split": VALIDATION_SPLIT}


def _checked(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (TypeError, ValueError, ImportError) as error:
        print_traceback(error, None)
        raise UsageError(f"The search cannot begin: {error}") from error


def _search_in_crew(arguments: argparse.Namespace) -> None:
    """Search in a chief and several workers of this machine."""
    from gradrecipes.tuning.launcher import LaunchError, launch, python_command

    _load(arguments.target)  # what is wrong with it is said here rather than in a log
    folder = arguments.out / SEARCH
    if not arguments.resume and folder.exists():
        shutil.rmtree(folder)
    command = ["tune", arguments.target, "--resume", "--out", str(arguments.out), "--tuner", arguments.tuner]
    command += ["--trials", str(arguments.trials), "--objective", arguments.objective, "--json"]
    for name in ("epochs", "seed"):
        if getattr(arguments, name) is not None:
            command += [f"--{name}", str(getattr(arguments, name))]
    with _Bar(arguments) as bar:

        def look(workers: list[Worker]) -> None:
            bar.show(len(list(folder.glob("trial_*/outcome.json"))), sum(one.alive for one in workers[1:]))

        try:
            launch(python_command("gradrecipes", *command), workers=arguments.workers, logs=arguments.out, on_look=look)
        except LaunchError as error:
            if not (folder / "search.json").is_file() or not list(folder.glob("trial_*/outcome.json")):
                raise UsageError(f"The search could not begin. {error}") from error
            print(error, file=sys.stderr)


class _Bar:
    """Show on stderr how many trials have ended."""

    def __init__(self, arguments: argparse.Namespace):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        total = None if arguments.tuner == "hyperband" else arguments.trials
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(file=sys.stderr, quiet=arguments.json), transient=True)
        self._task = self._progress.add_task("trials", total=total)
        self._failed = 0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def advance(self, *, failed: bool) -> None:
        """Count one trial."""
        self._failed += failed
        self._progress.update(self._task, advance=1, description=f"trials ({self._failed} failed)")

    def show(self, ended: int, workers: int) -> None:
        """Show a count."""
        self._progress.update(self._task, completed=ended, description=f"trials ({workers} workers)")


# -- what was found ------------------------------------------------------------------------------------
def _tell(arguments: argparse.Namespace, failure: str | None) -> int:
    from gradrecipes.tuning.results import SearchResults

    results = SearchResults.from_directory(arguments.out / SEARCH)
    results.save_json(arguments.out / "results.json")
    if arguments.json:
        from gradrecipes.core.trace.record import dumps

        print(dumps(results.to_dict()))
    else:
        _print(results, [arguments.out / "results.json", *_draw(results, arguments.out)])
    if failure is not None:
        print(f"gradrecipes: {failure}", file=sys.stderr)
    return 1 if results.best is None else 0


def _draw(results: SearchResults, out: Path) -> list[Path]:
    names = [axis.name for axis in results.axes]
    pictures: dict[str, Any] = {"settings": results.parallel_coordinates(), "importance": results.importance()}
    if "learning_rate" in names and len(names) > 1:
        other = "batch_size" if "batch_size" in names else next(name for name in names if name != "learning_rate")
        pictures["stability_map"] = results.stability_map("learning_rate", other)
    paths = []
    for name, picture in pictures.items():
        try:
            picture.save(out / f"{name}.png")
        except ImportError as error:
            print(f"No pictures were drawn. {error}", file=sys.stderr)
            break
        paths.append(out / f"{name}.png")
    return paths


def _print(results: SearchResults, paths: list[Path]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.print(results.table())
    if results.best is None:
        console.print("[bold]No trial worked.[/bold] The causes stand above.")
    else:
        settings = ", ".join(
            f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in results.best.values.items()
        )
        console.print(f"[bold]Best[/bold]: {results.objective} {results.best.score:.4g} with {settings}")
    console.print("Written: " + ", ".join(str(path) for path in paths), soft_wrap=True)
