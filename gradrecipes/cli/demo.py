"""`gradrecipes demo`: the main job on real data, in under two minutes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradrecipes.cli.terminal import UsageError, silence_tensorflow_notes

if TYPE_CHECKING:
    from gradrecipes.demo import ChainRun, Run, Story

CHAINS = (20, 50)  # neurons
LEARNS = 0.5  # test accuracy from which the table says "trains"; a constant prediction: 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes demo` takes."""
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="default: out/demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and shuffling (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Train, print one table, and write report, trace and heat map; return 0 when the demo is done."""
    import logging

    started = time.perf_counter()
    silence_tensorflow_notes()
    try:
        from gradrecipes.demo import load_digits

        data = load_digits()
        from gradrecipes.demo import EPOCHS, run_chain, tell_story
        from gradrecipes.plots.heat_map import HeatMap

        _require_drawing()
    except ImportError as error:
        raise UsageError(str(error)) from error
    _make_folder(arguments.out)
    logging.getLogger("gradrecipes").setLevel(logging.ERROR)
    with _Progress(total=4 * EPOCHS + len(CHAINS), quiet=arguments.json) as progress:
        story = tell_story(data, seed=arguments.seed, progress=progress.follow)
        chains = [progress.step(f"chain of {layers} neurons", run_chain, layers) for layers in CHAINS]
    guarded = story.runs[2]
    guarded.trace.save(arguments.out / "guarded.trace")
    HeatMap.from_trace(guarded.trace).save(arguments.out / "heat_map.png")
    story.diagnosis.save_html(arguments.out / "report.html")
    seconds = time.perf_counter() - started
    if arguments.json:
        from gradrecipes.core.trace.record import dumps

        print(dumps(_as_dict(story, chains, seconds)))
    else:
        _print(story, chains, seconds, arguments.out)
    return 0


def _require_drawing() -> None:
    for module in ("matplotlib", "jinja2"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(
                f"The demo draws and writes a page, and {module} is not installed. "
                "Install it with: pip install 'gradrecipes[demo]'"
            ) from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder {str(out)!r} cannot be made: {error}. Choose another with --out DIR.") from error


class _Progress:
    """Show on stderr how the demo goes, epoch by epoch."""

    def __init__(self, *, total: int, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(file=sys.stderr, quiet=quiet)
        columns = (
            TextColumn("{task.description:32}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        )
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._bar.add_task("loading", total=total)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def follow(self, name: str) -> list[Any]:
        import keras

        self._bar.update(self._task, description=name)
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self._bar.advance(self._task))]

    def step(self, name: str, function: Any, argument: Any) -> Any:
        self._bar.update(self._task, description=name)
        result = function(argument)
        self._bar.advance(self._task)
        return result


def _print(story: Story, chains: list[ChainRun], seconds: float, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    table = Table(title="Digits: 30 ReLU layers, weights of variance 4/fan_in, SGD 0.01", box=box.SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for header in ("test\naccuracy", "final\nloss", "broken\nweights"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("what came of it")
    for one in story.runs:
        broken = f"{one.nonfinite_weights} of {one.weights}"
        table.add_row(one.name, f"{one.test_accuracy:.3f}", f"{one.final_loss:.3g}", broken, _verdict(one))
    table.add_section()
    for chain in chains:
        gradient = f"dy/dw1 {chain.measured:.4e}, theory {chain.predicted:.4e}; clipped to {chain.clipped_update:.4f}"
        table.add_row(f"chain of {chain.layers}, w = 2.34", "", "", "", gradient)
    console.print(table)
    first = story.diagnosis.findings[0]
    console.print(f"\n[bold]Why (a) died[/bold]: {first.title} [dim]({first.code})[/dim]")
    for evidence in first.evidence[:2]:
        console.print(f"  {evidence.statement}")
    console.print(f"[bold]Found by trials, and trained as (d)[/bold]: {story.prescription}")
    console.print(f"\nRead {out / 'report.html'}; see {out / 'heat_map.png'}; keep {out / 'guarded.trace'}.")
    console.print(f"[dim]{seconds:.0f} seconds[/dim]")


def _verdict(run: Run) -> str:
    if run.nonfinite_weights:
        return "dead"
    skipped = f", {run.skipped_steps} steps skipped" if run.skipped_steps else ""
    return ("trains" if run.test_accuracy >= LEARNS else "alive, does not learn") + skipped


def _as_dict(story: Story, chains: list[ChainRun], seconds: float) -> dict[str, Any]:
    runs = [
        {
            "name": one.name,
            "test_accuracy": one.test_accuracy,
            "final_loss": one.final_loss,
            "nonfinite_weights": one.nonfinite_weights,
            "weights": one.weights,
            "skipped_steps": one.skipped_steps,
        }
        for one in story.runs
    ]
    return {
        "runs": runs,
        "chains": [vars(chain) for chain in chains],
        "diagnosis": story.diagnosis.to_dict(),
        "prescription": story.prescription,
        "rescue": story.rescue.to_dict(),
        "seconds": seconds,
    }
