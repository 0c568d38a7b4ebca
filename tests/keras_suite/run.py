"""Run the tests that the installed Keras ships, without callbacks of this package and with them, and compare.

    python tests/keras_suite/run.py                   # plain, monitor, guard
    python tests/keras_suite/run.py --arms monitor -k early_stopping
    python tests/keras_suite/run.py --only-fits              # with callbacks, only the tests that call fit at all

Ends with 1 if a test that passes without the callbacks does not pass with them, and names it. The callbacks are told to
keep out of the logs (`GradientMonitor(logs=False)`), since some of the tests ask for their exact keys.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.keras_suite import compare  # noqa: E402
from tests.keras_suite.plugin import ARMS  # noqa: E402

SUITE = ("trainers/trainer_test.py", "callbacks", "optimizers", "backend/tensorflow")
# The first talks to a server and wants a conftest that is not shipped; the second needs jax and orbax.
LEFT_OUT = ("callbacks/remote_monitor_test.py", "callbacks/orbax_checkpoint_test.py")


def main() -> int:
    arguments = parse()
    keras = Path(importlib.util.find_spec("keras").origin).parent / "src"
    suite = Suite(keras, processes=arguments.processes, expression=arguments.expression)
    with tempfile.TemporaryDirectory() as folder:
        suite.folder = Path(folder)
        plain = suite.run("plain")
        tell("plain", plain)
        if not compare.counts(plain)["passed"]:
            print("No test passes even without the callbacks, so there is nothing to compare.", file=sys.stderr)
            return 2
        if arguments.only_fits:
            plain = {name: test for name, test in plain.items() if test["fits"]}
        tests = tuple(plain) if arguments.only_fits else SUITE
        return max([judge(suite, arm, plain, tests) for arm in arguments.arms], default=0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arms = [arm for arm in ARMS if arm != "plain"]
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms, help="default: all")
    parser.add_argument("-k", dest="expression", default="", help="only the tests that match, as in pytest")
    parser.add_argument("-n", dest="processes", default="2", help="processes; default: 2")
    parser.add_argument("--only-fits", action="store_true", help="with callbacks, run only the tests that call fit")
    return parser.parse_args()


class Suite:
    """Keras' tests, ready to be run with the callbacks of an arm."""

    def __init__(self, keras: Path, *, processes: str, expression: str):
        self._keras = keras
        self._processes = processes
        self._expression = expression
        self.folder = Path()

    def run(self, arm: str, tests: tuple[str, ...] = SUITE) -> compare.Run:
        """Return what became of each test."""
        record, settings = self.folder / f"{arm}.json", self.folder / "pytest.ini"
        settings.write_text("[pytest]\n")  # and not those of this project, whose warnings are errors
        command = [sys.executable, "-m", "pytest", "-p", "tests.keras_suite.plugin", "-p", "no:cacheprovider"]
        command += ["-p", "no:warnings", "-c", str(settings), "--rootdir", str(self._keras), "-n", self._processes]
        command += ["--arm", arm, "--record", str(record)]
        command += [f"--ignore={self._keras / path}" for path in LEFT_OUT]
        command += ["-k", self._expression] if self._expression else []
        command += [str(self._keras / test) for test in tests]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if not record.is_file():
            raise SystemExit(f"pytest broke off with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return json.loads(record.read_text())


def judge(suite: Suite, arm: str, plain: compare.Run, tests: tuple[str, ...]) -> int:
    started = time.monotonic()
    run = suite.run(arm, tests)
    tell(arm, run)
    different = compare.differing(plain, run)
    print(f"  differ: {len(different)} ({time.monotonic() - started:.0f} s)")
    for name in different:
        print(f"    FAIL  {name}")
        print("".join(f"          {line}\n" for line in compare.last_words(run[name]["why"]).splitlines()), end="")
    return 1 if different else 0


def tell(arm: str, run: compare.Run) -> None:
    monitored, others = compare.fits(run)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in compare.counts(run).items())
    print(f"{arm}: {outcomes}; {monitored} fits" + ("" if arm == "plain" else " with the callbacks"), flush=True)
    for reason, count in sorted(others.items()):
        print(f"    {count} fits without: {reason}")


if __name__ == "__main__":
    sys.exit(main())
