"""`gradrecipes watch`: an unchanged Keras script, every fit in it monitored, with a diagnosis at the end."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradrecipes.cli.report import print_diagnosis
from gradrecipes.cli.target import print_traceback
from gradrecipes.cli.terminal import UsageError

if TYPE_CHECKING:
    from gradrecipes.callbacks.fit_recorder import WatchedFits, WatchedModel
    from gradrecipes.report.diagnosis import Diagnosis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes watch` takes."""
    parser.add_argument("--out", type=Path, default=Path("out/watch"), metavar="DIR", help="default: out/watch")
    parser.add_argument("--sample-every", type=int, default=50, metavar="STEPS", help="default: 50")
    parser.add_argument("--full", action="store_true", help="print every finding with its evidence and remedies")
    parser.add_argument("--json", action="store_true", help="print the diagnoses as JSON behind the script's output")
    parser.add_argument("script", type=Path, help="the training script, run as `python script` would run it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script takes")


def run(arguments: argparse.Namespace) -> int:
    """Run the script, diagnose each of its fits; return 1 if one is unhealthy, 2 if the script failed."""
    script = arguments.script
    if not script.is_file():
        raise UsageError(f"There is no script at {str(script)!r}. Expected the path of a Python file that trains.")
    if arguments.sample_every < 1:
        raise UsageError(f"--sample-every must be at least 1 step. Received: {arguments.sample_every}.")
    watcher = _Watcher(arguments.sample_every, script)
    failure = watcher.run(script, arguments.arguments)
    models = [] if watcher.fits is None else watcher.fits.models
    diagnoses = _diagnose(models, arguments.out / script.stem, script.name)
    _tell(diagnoses, arguments)
    for model in models:
        if model.not_recorded is not None:
            print(
                f"gradrecipes: the fit {_name(model, script.name)} is not watched, and ran as without it: "
                f"{model.not_recorded}",
                file=sys.stderr,
            )
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    if isinstance(failure, SystemExit):
        how = f"with exit code {failure.code}" if isinstance(failure.code, int) else f"and said: {failure.code}"
        raise UsageError(f"The script {str(script)!r} ended itself {how}. What was recorded until then stands above.")
    if failure is not None:
        raise UsageError(
            f"The script {str(script)!r} raised {type(failure).__name__}: {failure} (its traceback stands above). "
            "What was recorded until then is diagnosed above; run it with plain python to see whether it fails there."
        )
    if not models:
        raise UsageError(
            f"The script {str(script)!r} called no keras.Model.fit, so there is nothing to diagnose. "
            "In a loop of your own, use gr.GradientPipeline."
        )
    if not diagnoses:
        print("gradrecipes: undecided: no step of a fit was recorded.", file=sys.stderr)
    return 1 if any(diagnosis.verdict == "unhealthy" for _, diagnosis in diagnoses) else 0


class _Watcher:
    """Run a script as `__main__`, and watch Keras from the moment the script imports it."""

    def __init__(self, sample_every: int, script: Path):
        self._sample_every = sample_every
        self._script = script
        self._stack: Any = None
        self.fits: WatchedFits | None = None

    def run(self, script: Path, arguments: list[str]) -> BaseException | None:
        """Return what the script raised, or None; its own exit code of 0 or None is no failure."""
        import contextlib

        import wrapt

        before_argv, before_path = sys.argv, list(sys.path)
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.resolve().parent))
        with contextlib.ExitStack() as self._stack:
            if "keras" in sys.modules:
                self._watch(sys.modules["keras"])
            else:  # the script may set the environment before it imports Keras: so it is not imported for it
                wrapt.register_post_import_hook(self._watch, "keras")
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as stop:
                return None if stop.code in (None, 0) else stop
            except KeyboardInterrupt as stop:
                return stop
            except BaseException as error:
                print_traceback(error, script)
                return error
            finally:
                sys.argv, sys.path[:] = before_argv, before_path
        return None

    def _watch(self, keras: Any) -> None:
        if keras.backend.backend() != "tensorflow":
            raise UsageError(f"gradrecipes works on Keras' TensorFlow backend. Received: {keras.backend.backend()!r}.")
        from gradrecipes.callbacks.fit_recorder import FitRecorder, WatchedFits
        from gradrecipes.callbacks.gradient_monitor import GradientMonitor
        from gradrecipes.probes.examine import look_before_fit

        def look(model: Any, arguments: dict[str, Any], steps: int | None) -> Any:
            taken = ("x", "y", "sample_weight", "class_weight", "batch_size")
            given = {name: arguments[name] for name in taken if name in arguments}
            return look_before_fit(model, **given, steps=steps)

        self.fits = WatchedFits(
            lambda: FitRecorder(sample_every=self._sample_every), own=GradientMonitor, look=look, script=self._script
        )
        self._stack.enter_context(self.fits.watching())


def _diagnose(models: list[WatchedModel], out: Path, script: str) -> list[tuple[str, Diagnosis]]:
    from gradrecipes.doctor import diagnose

    diagnoses = []
    for number, model in enumerate((model for model in models if len(model.kept)), start=1):
        model.kept.save(out.with_name(f"{out.name}-{number}.trace"))
        diagnoses.append((_name(model, script), diagnose(model.kept)))
    return diagnoses


def _name(model: WatchedModel, script: str) -> str:
    return model.name if model.line is None else f"{model.name} ({script}, line {model.line})"


def _tell(diagnoses: list[tuple[str, Diagnosis]], arguments: argparse.Namespace) -> None:
    if arguments.json:
        from gradrecipes.core.trace.record import dumps

        print(dumps([{"model": name, **diagnosis.to_dict()} for name, diagnosis in diagnoses]))
        return
    if len(diagnoses) > 1:
        print()
    for name, diagnosis in diagnoses:
        if len(diagnoses) > 1:
            print(f"{name}, {len(diagnosis.trace)} steps: {diagnosis.summary}")
    for name, diagnosis in diagnoses:
        if len(diagnoses) > 1 and diagnosis.healthy and not arguments.full:
            continue
        print(f"\n== {name}: {len(diagnosis.trace)} steps ==")
        print_diagnosis(diagnosis, full=arguments.full)
    if not diagnoses:
        return
    page = arguments.out / f"{arguments.script.stem}.html"
    try:
        from gradrecipes.report.html import write_html

        write_html(page, diagnoses)
    except ImportError as error:
        print(f"No HTML page was written. {error}", file=sys.stderr)
    else:
        print(f"HTML page: {page}; traces beside it", file=sys.stderr)
