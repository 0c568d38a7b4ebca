"""Score the rescue on the corpus: how often the repaired training reaches the known fix, at what cost, beside others.

    python -m benchmarks.rescue --set tuning_half --every 5           every fifth program of a set
    python -m benchmarks.rescue --set tuning_half --baselines         the baselines too
    python -m benchmarks.rescue --set set_aside                       totals only
    python -m benchmarks.rescue --sample --record                     what `make bench ONLY=rescue` measures, resumable

A program counts as rescued if `rescue.model`, trained for the user's epochs, reaches within 5% of the metric of the
known fix in at least two of three seeds. Of a healthy program, "nothing needed" is right. Every row is appended to the
file of results, and programs that stand there are not run again. The baselines get as many training steps as the
rescue took, and their winner is judged in the same way:

    random    random sets of one to three of the same changes, a third of a training each, the best one kept
    rate/10   the learning rate divided by 10, again and again, until the loss ends finite and lower than it began
    clip      global_clipnorm=1
    list      activation, clip, normalization, initializers, optimizer: each trained in full, the best kept
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import gradrecipes as gr
from benchmarks.record import Figure, Record, share_figure
from gradrecipes.probes.examine import examine
from gradrecipes.rescue.arm import Arm
from gradrecipes.rescue.changes import catalogue, setup_after
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.feed import is_marked, looked_up_inputs, read_feed
from gradrecipes.rescue.original import read_original, setup_of
from gradrecipes.rescue.rebuild import rebuild
from gradrecipes.rescue.task import task_of
from tests.corpus.case import BLIND, SETS, Case, Program
from tests.corpus.verify import surroundings

SEEDS = (0, 1, 2)
OF_THE_GUARD = ("gradient_norm", "clipped_steps", "skipped_steps")  # in the history, beside the user's metrics
WITHIN = 0.05  # of the known fix's metric
SAMPLE = slice(5, None, 10)  # of the programs of each open set, those that the record is made of
COMPARED = 3  # every so manieth of them is also trained by the baselines, which take most of the time
OPEN = tuple(name for name in SETS if name not in BLIND)
LISTED = ("activation_elu", "clip", "normalization", "initializers", "adam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=SETS, action="append", help="default: all")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth program of a set")
    parser.add_argument("--program", action="append", help="take only these; not of the blind sets")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--sample", action="store_true", help="the sample of the record")
    parser.add_argument("--record", action="store_true", help="write the record of the rows in the file of results")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no program after so long")
    parser.add_argument("--out", type=Path, default=Path("out/rescue.jsonl"))
    arguments = parser.parse_args()
    if arguments.sample:
        arguments.set = list(OPEN)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    known, began = {(row["set"], row["name"]) for row in rows}, time.monotonic()
    for name in arguments.set or SETS:
        every = [(case, False) for case in importlib.import_module(f"tests.corpus.{name}").CASES[:: arguments.every]]
        for case, baselines in sampled(name) if arguments.sample else every:
            unwanted = arguments.program and (name in BLIND or case.name not in arguments.program)
            if unwanted or (name, case.name) in known or time.monotonic() - began > 60 * arguments.minutes:
                continue
            row = {"set": name, **judge(case, baselines=arguments.baselines or baselines)}
            rows.append(row)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row, default=float) + "\n")
    if arguments.record:
        from benchmarks import evidence
        from benchmarks.run import BENCHMARKS

        recorded(rows).write()
        evidence.write(list(BENCHMARKS))
    console = Console(width=120)
    for name in arguments.set or SETS:
        console.print(totals(name, [row for row in rows if row["set"] == name]))
        if name not in BLIND:
            for row in rows:
                if row["set"] == name and not row["right"]:
                    console.print(
                        f"  {row['name']} ({row['cause']}): {row['verdict']}, {row['changes']} {row['error']}"
                    )


def sampled(name: str) -> list[tuple[Case, bool]]:
    """Return the programs of a set that the record is made of, each with whether the baselines train it, too."""
    cases = importlib.import_module(f"tests.corpus.{name}").CASES[SAMPLE]
    return [(case, place % COMPARED == 0) for place, case in enumerate(cases)]


def judge(case: Case, *, baselines: bool) -> dict[str, Any]:
    """Rescue one program, and train what comes of it as its user would."""
    keras.backend.clear_session()
    row: dict[str, Any] = {"name": case.name, "cause": case.cause, "error": "", "verdict": "", "changes": []}
    with surroundings(case.needs):
        program, began = case.build(), time.perf_counter()
        try:
            found = gr.rescue(
                program.model,
                program.x,
                program.y,
                batch_size=program.batch_size,
                epochs=program.epochs,
                validation_data=program.validation_data,
            )
        except Exception as error:
            return row | {"error": repr(error)[:200], "right": False, "trainings": 0.0, "seconds": 0.0, "needed": []}
        row |= {
            "verdict": found.verdict,
            "changes": [change.name for change in found.changes],
            "needed": [change.needed for change in found.changes],
            "trainings": found.evidence.trainings,
            "seconds": time.perf_counter() - began,
            "parts": found.evidence.seconds,
            "costs": found.evidence.costs,
        }
        if case.cause is None:
            return row | {"right": found.verdict == "nothing needed"}
        known = metric_of(case.repaired(), None, {})
        row["known"] = known

        def answer(seed: int) -> tuple[keras.Model, dict[str, Any]]:
            """Return the answer as its user gets it: without changes their own model, whatever its optimizer holds."""
            return found.build(seed=seed) if found.changes else case.build().model, found.fit_arguments

        row["right"] = in_most_seeds(answer, as_advised(program, found.after, found._flaws), known)
        if baselines:
            row["baselines"], row["steps"] = rivals(case, program, found, known)
    return row


def in_most_seeds(
    build: Callable[[int], tuple[keras.Model, dict[str, Any]]], program: Program, known: tuple[str, float]
) -> bool:
    """Return whether at least two of three seeds reach the known fix; the third decides only where it has to."""
    marks: list[bool] = []
    for seed in SEEDS:
        marks.append(reaches(metric_of(program, *build(seed)), known))
        if marks.count(True) == 2 or marks.count(False) == 2:
            break
    return marks.count(True) >= 2


def as_advised(program: Program, after: Any, flaws: Any) -> Program:
    """Return the program with the lines about its data in place, which no argument of `fit` stands for."""
    if after.samples != "own" or after.gaps != "own":
        held = program.validation_data
        every = held or (program.x, program.y)  # else a part would be held back
        feed, _ = read_feed(program.x, program.y, batch_size=program.batch_size, validation_data=every)
        given = flaws.taken_out(feed).under(after.samples, after.gaps)
        if after.gaps != "own" and held:
            held = (flaws.filled(held[0]), *held[1:])
        return replace(program, x=given.x, y=given.y, validation_data=held)
    if after.target_shape != "own" and program.y is not None:
        return replace(program, y=np.asarray(program.y)[:, None])
    if after.target_values != "own" and program.y is not None:
        x, y, *weights = program.validation_data or (None, None)
        held = program.validation_data and (x, is_marked(np.asarray(y)).astype("float32"), *weights)
        return replace(program, y=is_marked(np.asarray(program.y)).astype("float32"), validation_data=held)
    if after.order == "own" or not isinstance(program.x, tf.data.Dataset):
        return program
    shuffled = program.x.unbatch().shuffle(10_000, seed=0, reshuffle_each_iteration=True).batch(after.batch_size)
    return replace(program, x=shuffled)


def metric_of(program: Program, model: keras.Model | None, arguments: dict[str, Any]) -> tuple[str, float]:
    """Train, and return the last value of the first metric, of validation where there is any; else R squared."""
    model = model or program.model
    options = {"batch_size": program.batch_size, **arguments}
    try:
        logs = model.fit(
            program.x, program.y, epochs=program.epochs, validation_data=program.validation_data, verbose=0, **options
        ).history
    except Exception as error:
        return type(error).__name__, float("nan")
    named = [key for key in logs if not key.endswith("loss") and not key.removeprefix("val_").startswith(OF_THE_GUARD)]
    for key in [key for key in named if key.startswith("val_")] + named:
        return key, float(np.mean(logs[key][-1]))
    if program.y is None or isinstance(program.y, dict | list | tuple):
        return "loss", float(logs["loss"][-1])
    try:
        target = np.asarray(program.y, "float64").reshape(len(program.y), -1)
        known = np.isfinite(target).all(axis=1)  # a target that is not finite cannot be predicted
        target = target[known]
        predicted = np.asarray(model.predict(program.x, verbose=0), "float64").reshape(len(known), -1)[known]
        if predicted.shape != target.shape:  # as of a likelihood: the loss alone says how good the prediction is
            return "loss", float(logs["loss"][-1])
        return "R2", float(1 - ((target - predicted) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum())
    except Exception:  # labels, or a model without a call
        return "loss", float(logs["loss"][-1]) if "loss" in logs else float("nan")


def reaches(one: tuple[str, float], known: tuple[str, float]) -> bool:
    """Return whether a metric is within 5% of that of the known fix, or better."""
    if not np.isfinite(one[1]):
        return False
    if any(word in known[0] for word in ("acc", "R2", "auc", "precision", "recall")):
        return one[1] >= (1 - WITHIN) * known[1]
    return one[1] <= known[1] + WITHIN * abs(known[1])


def rivals(
    case: Case, program: Program, found: Any, known: tuple[str, float]
) -> tuple[dict[str, bool], dict[str, float]]:
    """Return for each baseline whether its training reaches the known fix in two of three seeds, and its steps."""
    bench = Bench(case.build().model, program, found.diagnosis.trace)
    picks: dict[str, Callable[[], tuple[str, ...]]] = {
        "random": lambda: bench.random(found.evidence.spent_steps),
        "rate/10": bench.lower_rates,
        "clip": lambda: bench.only("clip"),
        "list": bench.listed,
    }
    marks, steps = {}, {"ours": found.evidence.spent_steps}
    for name, pick in picks.items():
        bench.spent = 0.0
        changes = pick()
        steps[name] = bench.spent
        guard = {"callbacks": [gr.GradientGuard()]} if "guard" in changes else {}
        size = setup_after(bench.base, tuple(bench.known[one] for one in changes)).batch_size
        options = {**guard, "batch_size": size}
        built = functools.partial(bench.build, changes)
        marks[name] = in_most_seeds(lambda seed, built=built, options=options: (built(seed), options), program, known)
    return marks, steps


class Bench:
    """Train the same changes without a diagnosis."""

    def __init__(self, model: keras.Model, program: Program, trace: Any = None):
        self.spent = 0.0  # steps, in batches of the user's size
        self.feed, size = read_feed(
            program.x, program.y, batch_size=program.batch_size, validation_data=program.validation_data
        )
        trace = trace or examine(model, self.feed.x, self.feed.y, batch_size=min(size, self.feed.samples))
        self.original = read_original(model)
        self.base = setup_of(model, trace.description, batch_size=size, epochs=program.epochs)
        self.task = task_of(self.feed, self.base, trace.description.outputs)
        self.scaling = scaling_of(self.feed.x, self.feed.y, looked_up_inputs(trace), self.task.numbers)
        self.full = self.feed.steps_per_epoch(size) * program.epochs
        self.known = catalogue(self.base, self.original, self.scaling, self.task, steps=self.full)

    def build(self, changes: tuple[str, ...], seed: int) -> keras.Model:
        """Return the compiled model of some changes."""
        keras.utils.set_random_seed(seed)
        return self._built(setup_after(self.base, tuple(self.known[name] for name in changes)), seed)

    def _built(self, setup: Any, seed: int) -> keras.Model:
        return rebuild(self.original, self.base, setup, scaling=self.scaling, seed=seed)

    def score(self, changes: tuple[str, ...], share: float) -> float:
        """Return the score after a share of the training."""
        setup = setup_after(self.base, tuple(self.known[name] for name in changes))
        arm = Arm(setup, 0, build=self._built, feed=self.feed, task=self.task)
        whole = self.feed.steps_per_epoch(setup.batch_size) * setup.epochs
        result = arm.train(max(1, round(share * whole)))
        self.spent += arm.done * setup.batch_size / self.base.batch_size
        return -np.inf if result.error or result.broken is not None else result.score.value

    def only(self, *names: str) -> tuple[str, ...]:
        """Return those of the changes that this program allows."""
        return tuple(name for name in names if name in self.known)

    def random(self, steps: float) -> tuple[str, ...]:
        """Return the best of random sets of changes."""
        rng, best, value = np.random.default_rng(0), (), -np.inf
        for _ in range(max(1, int(3 * steps / self.full))):
            names = sorted(rng.choice(list(self.known), size=min(len(self.known), rng.integers(1, 4)), replace=False))
            if (score := self.score(tuple(names), 1 / 3)) > value:
                best, value = tuple(names), score
        return best

    def lower_rates(self) -> tuple[str, ...]:
        """Return the highest of ever lower rates with which the training gets better than a constant prediction."""
        for name in self.only("rate_0.1", "rate_0.01", "rate_0.001"):
            if self.score((name,), 1.0) > self.task.baseline_score + 0.05:
                return (name,)
        return self.only("rate_0.001")

    def listed(self) -> tuple[str, ...]:
        """Return the best change of a fixed list."""
        return max(((name,) for name in self.only(*LISTED)), key=lambda names: self.score(names, 1.0), default=())


def recorded(rows: list[dict[str, Any]]) -> Record:
    """Return the record of the rows of the open sets."""
    rows = [row for row in rows if row["set"] in OPEN]
    failing = [row for row in rows if row["cause"] is not None]
    healthy = [row for row in rows if row["cause"] is None]
    compared = [row for row in failing if "baselines" in row]
    claimed = [row for row in failing if row["verdict"] == "rescued"]
    needs = [value for row in claimed for value in row["needed"] if value is not None]
    costs = np.array([row["trainings"] for row in failing])

    def reached(marks: list[bool], claim: str, **more: Any) -> Figure:
        return share_figure(claim, sum(marks), len(marks), **more)

    figures = [
        reached([row["right"] for row in failing], "reaches the known fix", expected=(0.9, 1.0), better="higher"),
        reached([row["right"] for row in claimed], "of those called rescued", better="higher"),
        reached([row["right"] for row in healthy], "healthy: nothing needed", expected=(0.95, 1.0), better="higher"),
        reached([value > 0.01 for value in needs], "changes that are needed", expected=(0.9, 1.0), better="higher"),
        Figure(
            "cost in trainings of the user's, median",
            float(np.median(costs)),
            *np.percentile(costs, [25, 75]).tolist(),
            expected=(0.0, 3.0),
            n=len(costs),
            better="lower",
        ),
        Figure("cost in trainings of the user's, highest", float(costs.max()), n=len(costs), better="lower"),
    ]
    titles = {
        "random": "random sets of the same changes, as many steps: reaches the known fix",
        "rate/10": "learning rate / 10 until it trains: reaches the known fix",
        "clip": "global_clipnorm=1: reaches the known fix",
        "list": "a fixed list, each trained in full: reaches the known fix",
    }
    if compared:
        figures += [reached([row["baselines"][name] for row in compared], title) for name, title in titles.items()]
        ratio = sum(row["steps"]["ours"] for row in compared) / max(1.0, sum(row["steps"]["list"] for row in compared))
        claim = "steps of the rescue over those of the list"
        figures.append(Figure(claim, ratio, expected=(0.0, 1 / 3), n=len(compared), better="lower"))
    parts: dict[str, list[float]] = {}
    for row in failing:
        for part, cost in row["costs"].items():
            parts.setdefault(part, []).append(cost)
    mean = ", ".join(f"{part} {sum(costs) / len(failing):.2f}" for part, costs in parts.items())
    return Record(
        "rescue",
        "How often the rescue reaches the known fix, beside blind repairs",
        "make bench ONLY=rescue",
        figures,
        source="The expected figures are targets of this project.",
        setting=f"Program {SAMPLE.start + 1} of each open set of tests/corpus, and every {SAMPLE.step}th behind it: "
        f"{', '.join(row['name'] for row in rows)}. Reached: the repaired training, as long as the user asked for, "
        "comes within 5% of the metric of the known fix in two of three seeds. The interval of the median cost is the "
        "quartiles. What was missed in this sample before was mended since, by kind: it is no blind one.",
        findings=[f"Mean cost by part, in trainings of the user's: {mean}."],
    )


def totals(name: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of a set."""
    failing = [row for row in rows if row["cause"] is not None]
    healthy = [row for row in rows if row["cause"] is None]
    table = Table(title=f"{name}: {len(failing)} failing programs, {len(healthy)} healthy ones")
    for column in ("", "rescued", "said to be rescued", "nothing needed (healthy)", "changes needed"):
        table.add_column(column, justify="left" if not column else "right")
    needs = [value for row in failing if row["verdict"] == "rescued" for value in row["needed"] if value is not None]
    table.add_row(
        "gr.rescue",
        share([row["right"] for row in failing]),
        share([row["verdict"] == "rescued" for row in failing]),
        share([row["right"] for row in healthy]),
        share([value > 0.01 for value in needs]),
    )
    compared = [row for row in failing if "baselines" in row]
    for rival in compared[0]["baselines"] if compared else ():
        table.add_row(rival, share([row["baselines"][rival] for row in compared]), "-", "-", "-")
    costs = np.array([row["trainings"] for row in rows] or [0.0])
    seconds = np.array([row["seconds"] for row in rows] or [0.0])
    table.caption = (
        f"Cost in trainings: median {np.median(costs):.1f}, most {costs.max():.1f}. "
        f"Seconds: median {np.median(seconds):.0f}, most {seconds.max():.0f}."
    )
    return table


def share(marks: list[bool]) -> str:
    """Return a share in words."""
    return f"{sum(marks)} of {len(marks)}" if marks else "-"


if __name__ == "__main__":
    main()
