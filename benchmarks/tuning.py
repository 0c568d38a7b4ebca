"""Searches in a space most of which diverges: plain keras-tuner and gr.tuning, side by side; and workers that die.

    python benchmarks/tuning.py                                  # four tuners, three seeds
    python benchmarks/tuning.py --tuners bayesian --seeds 5
    python benchmarks/tuning.py --arms plain ours patient        # ours without stopping hopeless trials, too
    python benchmarks/tuning.py --distributed                    # 1 chief, 3 workers, one of them killed

The same space, seeds and trial budget for both, on real data (digits). The space: an MLP of 3 or 6 ReLU layers,
weights of variance 2 or 4 over fan-in, squared error, SGD with momentum at a rate from 0.01 to 1000. Plain keras-tuner
ends a search after three failures in a row; here it is told not to, so that it has its budget too. Steps are counted
alike in both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradrecipes as gr
from gradrecipes.core.analysis.intervals import bootstrap_interval

ROOT = Path(__file__).resolve().parents[1]
BATCH, EPOCHS, TRIALS, HYPERBAND_EPOCHS = 64, 5, 16, 9
LOWEST, HIGHEST = 1e-2, 1000.0
NUMBERS, WORKERS = 15, 3  # trials and workers of the distributed search
ARMS = ("plain", "ours", "patient")  # the last: ours with `stop_hopeless=False`
PLAIN = {
    "random": keras_tuner.RandomSearch,
    "bayesian": keras_tuner.BayesianOptimization,
    "hyperband": keras_tuner.Hyperband,
    "grid": keras_tuner.GridSearch,
}
GUESSING = 0.09  # squared error of the best constant: 0.1 * 0.9
STEPS = [0]


class CountSteps(keras.callbacks.Callback):
    """Count training steps, in whatever copy of the callback."""

    def on_train_batch_end(self, batch, logs=None):
        """Count one."""
        STEPS[0] += 1


def data():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), keras.utils.to_categorical(y)
    return train_test_split(x, y, train_size=1152, stratify=y, random_state=0)


def builder(seed, *, grid=False):
    def build(hp):
        keras.utils.set_random_seed(seed)
        layers = hp.Choice("layers", [3, 6])
        variance = hp.Choice("variance", [2.0, 4.0])
        rate = hp.Float("learning_rate", LOWEST, HIGHEST, sampling="log", step=10 if grid else None)
        start = keras.initializers.VarianceScaling(variance, "fan_in", "untruncated_normal")
        hidden = [keras.layers.Dense(32, "relu", kernel_initializer=start) for _ in range(layers)]
        model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
        model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse", metrics=["accuracy"])
        return model

    return build


def search(arm, kind, seed, folder):
    """Return what one search found and what it cost."""
    x, x_val, y, y_val = data()
    budget = {"random": {"max_trials": TRIALS}, "bayesian": {"max_trials": TRIALS}}.get(kind, {})
    if kind == "hyperband":
        budget = {"max_epochs": HYPERBAND_EPOCHS}
    settings = {"directory": folder, "project_name": f"{arm}-{kind}-{seed}", "overwrite": True, "seed": seed + 1}
    build = builder(seed, grid=kind == "grid")
    if arm == "plain":
        tuner = PLAIN[kind](build, "val_loss", max_consecutive_failed_trials=None, **budget, **settings)
    else:
        tuner = gr.tuning.TUNERS[kind](build, "val_loss", stop_hopeless=arm == "ours", **budget, **settings)
    course = []  # steps when each trial had ended
    record, tuner.on_trial_end = tuner.on_trial_end, lambda trial: (record(trial), course.append(STEPS[0]))
    STEPS[0], begun = 0, time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tuner.search(
            x, y, validation_data=(x_val, y_val), epochs=EPOCHS, batch_size=BATCH, verbose=0, callbacks=[CountSteps()]
        )
    seconds = time.perf_counter() - begun
    trials = [tuner.oracle.trials[one] for one in tuner.oracle.end_order]
    lost = [trial_failed(trial) for trial in trials]
    scores = [trial.score for trial, bad in zip(trials, lost, strict=True) if not bad]
    last = lost[-len(lost) // 3 :]
    best, bests = np.inf, []
    for trial, bad in zip(trials, lost, strict=True):
        best = best if bad else min(best, trial.score)
        bests.append(float(best))
    return {
        "arm": arm,
        "tuner": kind,
        "seed": seed,
        "best": float(min(scores)) if scores else float("nan"),
        "steps": STEPS[0],
        "seconds": seconds,
        "trials": len(trials),
        "course": [[steps, value] for steps, value in zip(course, bests, strict=True) if np.isfinite(value)],
        "failed": int(sum(lost)),
        "failed_in_last_third": float(np.mean(last)),
        "distinct": len({json.dumps(trial.hyperparameters.values, sort_keys=True) for trial in trials}),
    }


def trial_failed(trial):
    """Say whether a trial failed: by status, by our record, or by a validation loss far above that of guessing."""
    bad = trial.status != "COMPLETED" or trial.score is None or not np.isfinite(trial.score)
    return bool(bad or trial.metrics.exists("failure_cause") or trial.score > 10 * GUESSING)


def compare(kinds, arms, seeds):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for kind in kinds:
                for arm in arms:
                    row = search(arm, kind, seed, folder)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return rows


def summarize(rows):
    print(
        f"\n{'tuner':10} {'arm':8} {'best val_loss by seed':34} {'steps':>7} {'failed':>7} {'of':>4} {'last third':>10}"
    )
    for kind in dict.fromkeys(row["tuner"] for row in rows):
        by_arm = {}
        for row in rows:
            if row["tuner"] == kind:
                by_arm.setdefault(row["arm"], []).append(row)
        for arm, mine in by_arm.items():
            best = " ".join(f"{row['best']:.4f}" for row in mine)
            failed, trials = (sum(row[name] for row in mine) for name in ("failed", "trials"))
            steps, late = (np.mean([row[name] for row in mine]) for name in ("steps", "failed_in_last_third"))
            print(f"{kind:10} {arm:8} {best:34} {steps:7.0f} {failed:7} {trials:4} {late:10.0%}")
        for arm in [one for one in by_arm if one != "plain" and "plain" in by_arm]:
            print(f"{'':19} {arm} against plain: {paired(by_arm[arm], by_arm['plain'])}")


def paired(mine, plain):
    """Say in words how an arm compares with plain keras-tuner, seed by seed."""
    share = sum(row["steps"] for row in mine) / sum(row["steps"] for row in plain)
    gains = np.array([other["best"] - row["best"] for row, other in zip(mine, plain, strict=True)])
    interval = bootstrap_interval(gains)
    reached = [
        next((steps for steps, best in row["course"] if best <= other["best"] + 1e-6), np.inf) / other["steps"]
        for row, other in zip(mine, plain, strict=True)
    ]
    better, worse = (int((sign * gains > 1e-6).sum()) for sign in (1, -1))
    gain = f"best lower by {gains.mean():.4f} in the mean (95%: {interval.low:.4f} to {interval.high:.4f})"
    count = f"better {better}, equal {len(gains) - better - worse}, worse {worse}"
    soon = ", ".join(f"{one:.2f}" for one in reached)
    return f"{share:.2f} of the steps; {gain}; {count}; as good as plain's best after {soon} of its steps"


# -- one chief, three workers ------------------------------------------------------------------------
def work(folder):
    """Be chief or worker of a distributed search; the first worker to have trained a while kills itself."""
    x, x_val, y, y_val = data()
    own = os.environ["KERASTUNER_TUNER_ID"]
    (Path(folder) / f"here-{own}").touch()
    deadline = time.monotonic() + 120
    while len(list(Path(folder).glob("here-worker-*"))) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.2)  # or the first to be there does all the work

    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                with contextlib.suppress(FileExistsError):
                    (Path(folder) / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)

    def build(hp):
        number = hp.Int("number", 0, NUMBERS - 1)
        fixed = keras_tuner.HyperParameters()
        for name, value in {"layers": 3, "variance": 2.0, "learning_rate": 1e3 if number % 3 == 0 else 0.1}.items():
            fixed.Fixed(name, value)  # one number in three diverges, by its rate alone
        return builder(number)(fixed)

    # All of the numbers are tried, each once, so that it is one trial in three.
    tuner = gr.tuning.GridSearch(build, "val_loss", directory=folder, project_name="search")
    tuner.search(x, y, validation_data=(x_val, y_val), epochs=EPOCHS, batch_size=BATCH, callbacks=[Killed()])


def distributed(restart):
    with tempfile.TemporaryDirectory() as folder:
        last = []  # how many trials have ended, and when the last did

        def look(crew):
            ended = len(list(Path(folder).glob("search/trial_*/outcome.json")))
            if not last or last[-1][0] != ended:
                last.append((ended, time.monotonic()))

        command = [sys.executable, __file__, "--work", folder]
        environment = {"GRADRECIPES_WORKER_PATIENCE": "10", "PYTHONPATH": str(ROOT)}
        launched = gr.tuning.launch(
            command, workers=WORKERS, logs=Path(folder) / "logs", environment=environment, on_look=look, restart=restart
        )
        results = gr.tuning.SearchResults.from_directory(Path(folder) / "search")
        report = {
            "restart": restart,
            "trials": len(results.trials),
            "completed": len(results.successes),
            "failed": len(results.failures),
            "unfinished": sum(one.status == "running" for one in results.trials),
            "killed": launched.lost,
            "by_worker": {one: sum(trial.worker == one for trial in results.trials) for one in launched.logs},
            "seconds": round(launched.seconds, 1),
            "exit_after_last_trial": round(time.monotonic() - last[-1][1], 1),
        }
        print(json.dumps(report), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tuners", nargs="+", choices=PLAIN, default=list(PLAIN))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["plain", "ours"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
    elif arguments.distributed:
        for restart in (False, True):
            distributed(restart)
    else:
        summarize(compare(arguments.tuners, arguments.arms, range(arguments.first, arguments.first + arguments.seeds)))


if __name__ == "__main__":
    main()
