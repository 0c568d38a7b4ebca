"""Run benchmarks, print their tables, write their figures as JSON with versions, and compare them with recorded ones.

    python -m benchmarks.run                       every benchmark, each in a process of its own
    python -m benchmarks.run overhead chain        some of them
    python -m benchmarks.run --check [NAME ...]    measure again, write nothing, fail where a figure regressed
    python -m benchmarks.run --list                names and rough durations

`make bench`, `make bench ONLY=overhead` and `make bench-check` are the same. A figure regressed if its interval lies
beyond the recorded one, on the bad side. Without names, the check measures again what is recorded and takes at most
CHECKED_MINUTES each.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from rich.console import Console
from rich.table import Table

from benchmarks import evidence, record
from benchmarks.record import Figure, Record, mean_figure, measured_words, share_figure

CHECKED_MINUTES = 15  # on one core
REPRODUCTIONS = "benchmarks.reproductions"
LIMIT = 1e30  # upper end of a range that is open


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that the runner knows.

    Args:
        measure: Returns its record.
        minutes: Rough duration on one core.
    """

    measure: Callable[[], Record]
    minutes: float


def reproduction(name: str, minutes: float) -> Benchmark:
    return Benchmark(lambda: importlib.import_module(f"{REPRODUCTIONS}.{name}").measure(), minutes)


OVERHEAD = {
    "overhead": ("An epoch", {}),
    "overhead_xla": ("An epoch, under XLA", {"xla": True}),
    "overhead_cores": ("An epoch, on two cores", {"cores": 2}),
    "overhead_start_up": ("Time to the first step", {"kind": "start_up"}),
    "overhead_start_up_xla": ("Time to the first step, under XLA", {"kind": "start_up", "xla": True}),
    "overhead_depth": ("An epoch, by depth", {"kind": "depth"}),
    "overhead_parameters": ("An epoch, by parameters", {"kind": "parameters"}),
}


def overhead(name: str = "overhead") -> Record:
    from benchmarks import overhead

    title, arguments = OVERHEAD[name]
    found = overhead.collect(**{"kind": "steps"} | arguments)
    figures = []
    for net, row in found.items():
        limit = row["keras clip"]["median"] + 0.03
        targets = {
            "overhead": {"monitor": 1.05, "monitor + guard + clip": limit},
            "overhead_xla": {"monitor": limit, "monitor + guard + clip": limit},
        }.get(name, dict.fromkeys(("monitor", "monitor + guard + clip"), 1.3) if "start_up" in name else {})
        for variant, cell in row.items():
            if variant == "plain" or "spread" not in cell:
                continue
            low, high = (cell["median"] + side * 2 * cell["spread"] for side in (-1, 1))
            target = (0.0, targets[variant]) if variant in targets else None
            claim, rounds = f"{net}: {variant}", int(cell["rounds"])
            figures.append(Figure(claim, cell["median"], low, high, target, n=rounds, better="lower"))
    return Record(
        name,
        f"{title}: over that of plain Keras",
        f"make bench ONLY={name}",
        figures,
        setting="Each variant in a long fit; the fits take turns by epochs, in one process, on one core unless it says "
        "otherwise. Median of the ratios to the plain epochs of the same round, less and more two standard errors. "
        "Batch 64, Adam. Target of the monitor: 1.05; of monitor, guard and clip, and of all under XLA: 0.03 above "
        "Keras' own clip; of the time to the first step: 1.3.",
    )


def import_time() -> Record:
    import time

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=record.ROOT, capture_output=True)
        return time.perf_counter() - start

    ratios = []
    for turn in range(-1, 5):
        alone, with_ours = seconds("import keras"), seconds("import keras, gradrecipes")
        ratios += [with_ours / alone] * (turn >= 0)
    return Record(
        "import_time",
        "Importing gradrecipes",
        "make bench ONLY=import_time",
        [mean_figure("import of keras and gradrecipes over that of keras alone", ratios, better="lower")],
        setting="A fresh interpreter each time, in turn; the first pair is left out.",
    )


def memory() -> Record:
    from benchmarks import memory

    ratios = [memory.growth("monitor and guard") / memory.growth("plain") for _ in range(3)]
    return Record(
        "memory",
        "What fits of fresh nets leave in memory",
        "make bench ONLY=memory",
        [mean_figure("growth of a process over that under plain Keras", ratios, expected=(0.0, 1.5), better="lower")],
        setting=f"{memory.FITS} fits of nets with four hidden layers on the digits, with a monitor and a guard; growth "
        "of the resident set from the end of the first fit to that of the last, in a fresh process each time.",
    )


def theory() -> Record:
    import numpy as np

    from benchmarks import theory

    random, nets = np.random.default_rng(2), []
    kinds = list(theory.initializers("relu", 0))
    for number in range(8):
        for activation in theory.ACTIVATIONS:
            depth, width = theory.draw(random)
            kind = kinds[number % len(kinds)]
            nets.append(theory.measure(activation, kind, depth, width, seed=int(random.integers(2**20))))
    figures = []
    for which, words in (("output", "outputs of the last hidden layer"), ("gradient", "growth of the gradient")):
        judged = [theory.judged(net, which) for net in nets]
        last = [row[~np.isnan(row)][-1 if which == "output" else 0] for row in judged if not np.isnan(row).all()]
        claim = f"nets within the error bar of their widths, {words}"
        figures.append(share_figure(claim, int(sum(last)), len(last), expected=0.9545))
    return Record(
        "theory",
        "Predictions of mean-field theory within their error bar",
        "make bench ONLY=theory",
        figures,
        source="Finite width: arXiv 1812.05994. The bar is meant to hold 95.45% of all draws.",
        setting=f"{len(nets)} plain Dense nets of random depth, width, initializer and activation; one batch of "
        "digits.",
    )


def studies() -> Record:
    from benchmarks import studies

    ratios, same, reused = studies.compare(3)
    return Record(
        "studies",
        "A study beside a loop over arms and seeds",
        "make bench ONLY=studies",
        [
            mean_figure("wall time over that of the loop", ratios, expected=(0.0, studies.AT_MOST), better="lower"),
            Figure("every number of every epoch is the same to the bit", float(same), expected=1, better="higher"),
            share_figure(
                "runs that used a compiled step again", reused, len(studies.ARMS) * len(studies.SEEDS), better="higher"
            ),
        ],
        setting="Five arms and five seeds of a small net on the digits; both in one process, in turn.",
    )


def diagnosis() -> Record:
    from benchmarks import diagnosis
    from tests.corpus.case import BLIND

    figures, every = [], 10
    for which, blind in (("open", False), ("set aside", True)):
        names = [name for name in diagnosis.SETS if (name in BLIND) == blind]
        rows = [row for name in names for row in diagnosis.score(name, every=every, apply=not blind)]
        failing = [row for row in rows if row["kind"] == "failing"]
        sound = [row for row in rows if row["kind"] != "failing"]
        marks = {
            "failing programs called unhealthy": (failing, "verdict", "unhealthy", (0.95, 1.0), "higher"),
            "first finding right": (failing, "right", True, (0.8, 1.0), "higher"),
            "sound programs called unhealthy": (sound, "verdict", "unhealthy", (0.0, 0.0), "lower"),
            "sound programs left undecided": (sound, "verdict", "undecided", (0.0, 0.1), "lower"),
        }
        for claim, (part, name, value, expected, better) in marks.items():
            hits = sum(row[name] == value for row in part)
            figures.append(share_figure(f"{which}: {claim}", hits, len(part), expected=expected, better=better))
        applied = [row["applied"] for row in failing if "own" in row.get("applied", {})]
        if applied:
            claim = f"{which}: the first prescription, applied, reaches the known fix"
            hits = sum(one["reached"] for one in applied)
            figures.append(share_figure(claim, hits, len(applied), expected=(0.8, 1.0), better="higher"))
    return Record(
        "diagnosis",
        "What the diagnosis finds in the corpus",
        "make bench ONLY=diagnosis",
        figures,
        source="The expected figures are targets of this project.",
        setting=f"Every {every}th program of each set of tests/corpus, diagnosed before its training; sound programs "
        "include repaired twins. The open sets were looked at while rules were written. A prescription is applied "
        "where it can be run as it is printed, or is an edit of the rescue.",
    )


def rescue() -> Record:
    from benchmarks import rescue

    taken = [(name, *one) for name in rescue.OPEN for one in rescue.sampled(name)]
    return rescue.recorded(
        [{"set": name, **rescue.judge(case, baselines=baselines)} for name, case, baselines in taken]
    )


def tuning() -> Record:
    from benchmarks import tuning

    rows = tuning.compare(list(tuning.PLAIN), ["plain", "ours"], range(3))
    figures = []
    for kind in tuning.PLAIN:
        plain, ours = ([row for row in rows if row["tuner"] == kind and row["arm"] == arm] for arm in ("plain", "ours"))
        pairs = list(zip(ours, plain, strict=True))
        steps = [mine["steps"] / other["steps"] for mine, other in pairs]
        gains = [other["best"] - mine["best"] for mine, other in pairs]
        figures.append(mean_figure(f"{kind}: training steps over those of plain keras-tuner", steps, better="lower"))
        figures.append(mean_figure(f"{kind}: best validation loss, plain less ours", gains, better="higher"))
    return Record(
        "tuning",
        "A search in a space most of which diverges",
        "make bench ONLY=tuning",
        figures,
        setting="Digits; MLP, SGD with momentum, rates from 0.01 to 1000; the same space, seeds and trials for both.",
    )


def faults() -> Record:
    from benchmarks import faults

    return faults.recorded(faults.collect(workers=1, wanted=faults.in_record))


BENCHMARKS = {
    "chain": reproduction("chain", 0.3),
    "edge_of_stability": reproduction("edge_of_stability", 0.5),
    "batch_normalization": reproduction("batch_normalization", 1),
    "overflow_depth": reproduction("overflow_depth", 5),
    "temporal_order": reproduction("temporal_order", 5),
    "depth_initialization": reproduction("depth_initialization", 3),
    "residual": reproduction("residual", 15),
    "mean_field_depth": reproduction("mean_field_depth", 8),
    "adaptive_clipping": reproduction("adaptive_clipping", 6),
    "loss_spikes": reproduction("loss_spikes", 10),
    **{
        name: Benchmark(functools.partial(overhead, name), 30 if {"depth", "parameters"} & set(name.split("_")) else 15)
        for name in OVERHEAD
    },
    "import_time": Benchmark(import_time, 1.5),
    "memory": Benchmark(memory, 6),
    "theory": Benchmark(theory, 2),
    "studies": Benchmark(studies, 5),
    "diagnosis": Benchmark(diagnosis, 40),
    "rescue": Benchmark(rescue, 25),
    "tuning": Benchmark(tuning, 30),
    "faults": Benchmark(faults, 45),
}


def regressions(measured: Record, recorded: Record) -> list[str]:
    """Return what regressed, one line a figure; a recorded figure that is missing counts."""
    now = {figure.claim: figure for figure in measured.figures}
    lines = []
    for figure in recorded.figures:
        found = now.get(figure.claim)
        if found is None:
            lines.append(f"{recorded.name}: {figure.claim}: recorded, and not measured any more")
        elif found.regressed(figure):
            lines.append(f"{recorded.name}: {figure.claim}: {measured_words(found)}, recorded {measured_words(figure)}")
    return lines


def run_one(name: str, *, check: bool, results: Path) -> int:
    """Measure one benchmark in this process; return 1 where a check finds a regression."""
    plots = record.PLOTS
    with tempfile.TemporaryDirectory() as folder:
        try:
            record.PLOTS = Path(folder) if check else plots
            found = BENCHMARKS[name].measure()
        finally:
            record.PLOTS = plots
    found.show()
    if not check:
        Console(width=150).print(f"written: {found.write(results)}")
        if results == record.RESULTS:
            evidence.write(list(BENCHMARKS))
        return 0
    path = results / f"{name}.json"
    if not path.exists():
        Console(width=150).print(f"{name}: nothing is recorded in {results}; record it with: {found.command}")
        return 1
    lines = regressions(found, record.load(path))
    for line in lines:
        Console(width=150).print(f"REGRESSED  {line}")
    return int(bool(lines))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--check", action="store_true", help="compare with what is recorded, and write nothing")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}. Choose from: {', '.join(BENCHMARKS)}.")
    if chosen.list:
        table = Table("benchmark", "minutes on one core", "recorded")
        for name, one in BENCHMARKS.items():
            table.add_row(name, f"{one.minutes:g}", "yes" if (chosen.results / f"{name}.json").exists() else "no")
        Console().print(table)
        return 0
    if len(chosen.names) == 1:
        return run_one(chosen.names[0], check=chosen.check, results=chosen.results)
    names = chosen.names or list(BENCHMARKS)
    if chosen.check and not chosen.names:
        recorded = [name for name in names if (chosen.results / f"{name}.json").exists()]
        names = [name for name in recorded if BENCHMARKS[name].minutes <= CHECKED_MINUTES]
    failed = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.run", name, "--results", str(chosen.results)]
        if subprocess.run(command + ["--check"] * chosen.check, cwd=record.ROOT).returncode:
            failed.append(name)
    Console().print(
        f"{len(names) - len(failed)} of {len(names)} benchmarks: fine. Failed: {', '.join(failed) or 'none'}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
