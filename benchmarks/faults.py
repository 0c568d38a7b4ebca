"""What faults do to a training: under Keras alone, under Keras' best own defence, and under the guard.

    python -m benchmarks.faults [--only adam] [--mode xla] [--fault bit,rate] [--arm guard] [--workers 2]

Every fault meets every optimizer in every mode, on scikit-learn's digits. A run counts as saved when all weights
are finite at the end and the validation accuracy is within 5% of that of the same run without the fault. Results
are kept in `out/faults.json`; what is there already is not run again.

Keras' best own defence is taken to be a global clip norm of 1, early stopping on the validation loss that restores
the best weights, and (for the runs that are killed) BackupAndRestore.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.record import Record, share_figure

EPOCHS, BATCH, TRAINED = 10, 32, 1408
BAD = 700  # the sample that is hit, in batch 22 of 44
FAULT_STEP = 4 * TRAINED // BATCH + 20  # where a fault has a moment rather than a sample: in the fifth epoch
OPTIMIZERS = {
    "SGD": {"learning_rate": 0.05, "momentum": 0.9},
    "Adam": {"learning_rate": 0.002},
    "AdamW": {"learning_rate": 0.002},
    "RMSprop": {"learning_rate": 0.001},
    "Lion": {"learning_rate": 0.0005},
    "Adafactor": {"learning_rate": 0.02, "epsilon_1": 1e-12},  # its default makes NaN of an entry that is always 0
}
MODES = ("graph", "eager", "xla", "eight steps at once", "accumulation", "mixed_float16", "two replicas")
FAULTS = (
    "Inf feature", "NaN feature", "NaN label", "outlier x 1e6", "gradient of 1e20", "Adam's delayed NaN",
    "NaN from a loss", "bit flip", "rate x 1000", "KeyboardInterrupt", "kill and resume",
)  # fmt: skip
ARMS = ("keras", "keras' defence", "guard")
# What `make bench ONLY=faults` runs under the guard; all six optimizers in every mode and arm take hours.
RECORDED = {mode: ("Adam",) for mode in MODES} | {"graph": ("SGD", "Adam", "Adafactor"), "eager": ("SGD",)}
COMPARED = ("Adafactor",)  # what it runs without the guard too, in graph mode
RESULTS = Path("out/faults.json")


Runs = list[tuple[str, str]]  # fault and arm


def run_group(task: tuple[str, str, Runs]) -> list[dict]:
    """Run faults and arms of one optimizer in one mode, in this process."""
    return list(_run_group(*task))


def _run_group(optimizer: str, mode: str, runs: Runs) -> Iterator[dict]:
    import keras
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_digits

    import gradrecipes as gr

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("gradrecipes").setLevel(logging.ERROR)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if mode == "two replicas" else None
    images, digits = load_digits(return_X_y=True)
    flag = np.zeros((len(images), 1), "float32")
    x = np.hstack([(images / 16).astype("float32"), flag])
    y = np.eye(10, dtype="float32")[digits]

    @tf.custom_gradient
    def poison(weight, amount):
        return tf.identity(weight), lambda upstream: (upstream + tf.cast(amount, upstream.dtype), None)

    class Net(keras.layers.Layer):
        """Two hidden layers; the last input is no pixel but says that one bias gets a gradient of 1e20."""

        def build(self, shape):
            self.dense = [keras.layers.Dense(units, activation=how) for units, how in ((64, "relu"), (64, "relu"))]
            self.out = keras.layers.Dense(10, dtype="float32")
            self.bias = self.add_weight(shape=(1,), name="bias", dtype="float32", autocast=False)

        def call(self, inputs):
            hidden = inputs[:, :-1]
            for layer in self.dense:
                hidden = layer(hidden)
            hit = tf.reduce_max(tf.cast(inputs[:, -1], tf.float32))
            bias = poison(tf.convert_to_tensor(self.bias, tf.float32), hit * 1e20)
            return self.out(hidden) + bias

    def entropy_loss(y_true, y_pred):
        """Return cross-entropy with an entropy term that is 0·log 0 where a label sums to 2."""
        share = (2.0 - tf.reduce_sum(y_true, axis=-1, keepdims=True)) * tf.nn.softmax(y_pred)
        return tf.nn.softmax_cross_entropy_with_logits(y_true, y_pred) + 0.001 * tf.reduce_sum(
            share * tf.math.log(share), axis=-1
        )

    class Jump(keras.optimizers.schedules.LearningRateSchedule):
        """A rate that is a thousand times too high from one step on."""

        def __init__(self, rate, at):
            self.rate, self.at = rate, at

        def __call__(self, step):
            return tf.where(tf.cast(step, tf.int32) >= self.at, self.rate * 1000.0, self.rate)

        def get_config(self):
            return {"rate": self.rate, "at": self.at}

    class At(keras.callbacks.Callback):
        """Do something once, after so many steps."""

        def __init__(self, act):
            super().__init__()
            self.act, self.done = act, False

        def on_train_batch_begin(self, batch, logs=None):
            if not self.done and self.epoch * (TRAINED // BATCH) + batch >= FAULT_STEP:
                self.done = True
                self.act(self.model)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    def flip(model):
        kernel = next(weight for weight in model.trainable_variables if len(weight.shape) == 2)
        values = np.array(kernel.numpy(), copy=True)
        largest = np.unravel_index(values.argmax(), values.shape)  # a negative one would only silence a ReLU
        values.view(np.uint32)[largest] ^= 1 << 30  # the highest bit of the exponent
        kernel.assign(values)

    def interrupt(model):
        raise KeyboardInterrupt

    made = {}  # by what sets one model apart from another: the faults share models, each from the same beginning

    def make(fault, arm):
        own = fault if fault in ("rate x 1000", "NaN from a loss") else ""
        if (arm, own) not in made:
            model = build(fault, arm)
            state = [*model.variables, *model.optimizer.variables]
            made[arm, own] = model, [(variable, np.array(variable)) for variable in state]
        model, beginning = made[arm, own]
        with strategy.scope() if strategy else contextlib.nullcontext():
            for variable, value in beginning:
                variable.assign(value)
        keras.utils.set_random_seed(0)
        return model

    def build(fault, arm):
        arguments = dict(OPTIMIZERS[optimizer])
        if fault == "rate x 1000":
            updates = FAULT_STEP // 4 if mode == "accumulation" else FAULT_STEP
            arguments["learning_rate"] = Jump(
                arguments["learning_rate"], updates * (4 if mode == "accumulation" else 1)
            )
        if mode == "accumulation":
            arguments["gradient_accumulation_steps"] = 4
        if arm == "keras' defence":
            arguments["global_clipnorm"] = 1.0
        policy = "mixed_float16" if mode == "mixed_float16" else "float32"
        keras.mixed_precision.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((65,))
            model = keras.Model(inputs, Net()(inputs))
            loss = (
                entropy_loss if fault == "NaN from a loss" else keras.losses.CategoricalCrossentropy(from_logits=True)
            )
            model.compile(
                optimizer=getattr(keras.optimizers, optimizer)(**arguments),
                loss=loss,
                metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
                jit_compile=mode == "xla",
                run_eagerly=mode == "eager",
                steps_per_execution=8 if mode == "eight steps at once" else 1,
            )
            model.optimizer.build(model.trainable_variables)
            return model

    def data(fault):
        inputs, labels, weights = x[:TRAINED].copy(), y[:TRAINED].copy(), np.ones(TRAINED, "float32")
        if fault == "Inf feature":
            inputs[BAD, 3] = np.inf
        elif fault == "NaN feature":
            inputs[BAD, 3] = np.nan
        elif fault == "NaN label":
            labels[BAD, 3] = np.nan
        elif fault == "outlier x 1e6":
            inputs[BAD, :64] *= 1e6
        elif fault == "gradient of 1e20":
            weights[BAD] = 3.2e21
        elif fault == "Adam's delayed NaN":
            inputs[BAD, 64] = 1
        elif fault == "NaN from a loss":
            labels[BAD] *= 2
        return inputs, labels, weights

    def callbacks(arm, folder=None):
        found = [keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)] if folder else []
        if arm == "keras' defence":
            stop = keras.callbacks.EarlyStopping("val_loss", patience=EPOCHS, restore_best_weights=True)
            found.append(stop)
        return [gr.GradientGuard(backup_dir=folder), *found] if arm == "guard" else found

    def fit(model, fault, own, **more):
        inputs, labels, weights = data(fault)
        validation = (x[TRAINED:], y[TRAINED:])
        options = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0, **more}
        model.fit(inputs, labels, sample_weight=weights, validation_data=validation, callbacks=own, **options)

    def train(fault, arm):
        model, own = make(fault, arm), callbacks(arm)
        if fault == "bit flip":
            fit(model, fault, [*own, At(flip)])
        elif fault == "KeyboardInterrupt":
            with contextlib.suppress(KeyboardInterrupt):
                fit(model, fault, [*own, At(interrupt)])
            fit(model, fault, own, initial_epoch=FAULT_STEP * BATCH // TRAINED)
        elif fault == "kill and resume":
            folder = tempfile.mkdtemp()
            with contextlib.suppress(KeyboardInterrupt):
                fit(model, fault, [*callbacks(arm, folder), At(interrupt)])
            model = make(fault, arm)  # all that remains of the first process is on disk
            own = callbacks(arm, folder)
            fit(model, fault, own)
            shutil.rmtree(folder)
        else:
            fit(model, fault, own)
        return model, own

    def outcome(fault, arm):
        begun = time.perf_counter()
        try:
            model, own = train(fault, arm)
        except Exception as error:  # a defence that breaks the training has lost it
            lost = {"finite": False, "accuracy": 0.0, "events": {}, "error": repr(error)[:300]}
            return {"optimizer": optimizer, "mode": mode, "fault": fault, "arm": arm, "seconds": 0.0, **lost}
        finite = all(bool(np.isfinite(weight).all()) for weight in model.get_weights())
        scores = model.predict(x[TRAINED:], verbose=0)
        accuracy = float(np.mean(scores.argmax(1) == digits[TRAINED:])) if np.isfinite(scores).all() else 0.0
        events = [] if arm != "guard" else [event.kind for event in own[0].events]
        return {
            "optimizer": optimizer, "mode": mode, "fault": fault, "arm": arm, "finite": finite, "accuracy": accuracy,
            "seconds": time.perf_counter() - begun, "events": {kind: events.count(kind) for kind in set(events)},
        }  # fmt: skip

    for fault, arm in runs:
        yield outcome(fault, arm)


def load() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def show(results: list[dict]) -> None:
    """Print, by fault and arm, in how many runs the weights stayed finite and the metric was kept."""
    from rich.console import Console
    from rich.table import Table

    clean = {(r["optimizer"], r["mode"]): r["accuracy"] for r in results if r["fault"] == "none"}
    table = Table(
        "fault", *(f"{arm}: {what}" for arm in ARMS for what in ("finite", "metric kept")), title="Saved runs"
    )
    kept = {id(r): r["finite"] and r["accuracy"] >= 0.95 * clean[r["optimizer"], r["mode"]] for r in results}
    for fault in [*FAULTS, None]:
        row = []
        for arm in ARMS:
            runs = [r for r in results if r["arm"] == arm and r["fault"] in ((fault,) if fault else FAULTS)]
            row += [f"{sum(r['finite'] for r in runs)}/{len(runs)}", f"{sum(kept[id(r)] for r in runs)}/{len(runs)}"]
        table.add_row(fault or "all", *row, style=None if fault else "bold")
    console = Console(width=150)
    console.print(table)
    for r in results:
        if r["arm"] == "guard" and r["fault"] != "none" and not kept[id(r)]:
            place = f"{r['fault']}, {r['optimizer']}, {r['mode']}"
            r.setdefault("error", "")
            console.print(
                f"missed: {place}: {r['accuracy']:.3f} of {clean[r['optimizer'], r['mode']]:.3f}, {r['events']}"
            )


def recorded(results: list[dict]) -> Record:
    """Return the figures of what `in_record` names."""
    clean = {(r["optimizer"], r["mode"]): r["accuracy"] for r in results if r["fault"] == "none"}
    hit = [r for r in results if r["fault"] != "none" and in_record(r["optimizer"], r["mode"], r["arm"])]
    kept = {id(r): r["finite"] and r["accuracy"] >= 0.95 * clean[r["optimizer"], r["mode"]] for r in hit}
    figures = []
    for mode in MODES:
        for arm in ARMS:
            runs = [r for r in hit if r["mode"] == mode and r["arm"] == arm]
            if not runs:
                continue
            guarded = {"expected": 1.0, "better": "higher"} if arm == "guard" else {}
            finite = sum(r["finite"] for r in runs)
            figures.append(share_figure(f"finite weights at the end, {mode}, {arm}", finite, len(runs), **guarded))
            guarded.pop("expected", None)
            saved = sum(kept[id(r)] for r in runs)
            figures.append(share_figure(f"runs saved, {mode}, {arm}", saved, len(runs), **guarded))
    ran = {mode: sorted({r["optimizer"] for r in hit if r["arm"] == "guard" and r["mode"] == mode}) for mode in MODES}
    missing = ", ".join(mode for mode, names in ran.items() if not names)
    ran_words = "; ".join(f"{', '.join(names)} ({mode})" for mode, names in ran.items() if names)
    misses = [r for r in hit if r["arm"] == "guard" and not kept[id(r)]]
    words = "; ".join(
        f"{r['fault']}, {r['optimizer']}, {r['mode']}: {'' if r['finite'] else 'weights not finite, '}"
        f"accuracy {r['accuracy']:.3f}, "
        f"{clean[r['optimizer'], r['mode']]:.3f} without the fault"
        for r in misses
    )
    return Record(
        "faults",
        "Runs saved from a fault",
        "make bench ONLY=faults",
        figures,
        setting=f"{len(FAULTS)} faults ({', '.join(FAULTS)}), on the digits, {EPOCHS} epochs, one seed. Under the "
        f"guard with {ran_words}; without it in graph mode with {' and '.join(COMPARED)}. Saved: finite "
        "weights, and a validation accuracy within 5% of that without the fault. The defence of Keras: a global clip "
        "norm of 1, early stopping that restores the best weights, and BackupAndRestore.",
        findings=[
            f"Not saved by the guard: {words}." if words else "The guard saved every run.",
            *([f"Not measured yet: {missing}."] if missing else []),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of an optimizer's name")
    parser.add_argument("--mode", default="", help="part of a mode's name")
    parser.add_argument("--fault", default="", help="parts of faults' names, such as bit,rate")
    parser.add_argument("--arm", default="", help="part of an arm's name")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    parts = arguments.fault.lower().split(",")
    faults = [fault for fault in FAULTS if any(part in fault.lower() for part in parts)]
    show(collect(arguments.workers, only=arguments.only, mode=arguments.mode, faults=faults, arm=arguments.arm))


def in_record(optimizer: str, mode: str, arm: str) -> bool:
    """Return whether `make bench ONLY=faults` runs it: the guard in every mode, what it is compared with in graph.

    Two replicas are left out where there is one core: they wait for each other there, a third of a second each step.
    """
    if mode == "two replicas" and len(os.sched_getaffinity(0)) < 2:
        return False
    return optimizer in (RECORDED[mode] if arm == "guard" else COMPARED if mode == "graph" else ())


def collect(
    workers: int,
    *,
    only: str = "",
    mode: str = "",
    faults: Iterable[str] = FAULTS,
    arm: str = "",
    wanted: Callable[[str, str, str], bool] = lambda optimizer, mode, arm: True,
) -> list[dict]:
    """Run what is not in the file of results yet, and return all that is.

    Args:
        workers: Processes.
        only, mode, arm: Parts of names.
        faults: Names.
        wanted: Says of an optimizer, a mode and an arm whether its faults are run.
    """
    results = load()
    arms = [name for name in ARMS if arm.lower() in name]
    runs = [("none", "keras"), *((fault, name) for fault in faults for name in arms)]
    done = {(r["optimizer"], r["mode"], r["fault"], r["arm"]) for r in results}
    tasks = []
    for place in (name for name in MODES if mode.lower() in name):
        for optimizer in (name for name in OPTIMIZERS if only.lower() in name.lower()):
            asked = [pair for pair in runs if pair[0] == "none" or wanted(optimizer, place, pair[1])]
            left = [pair for pair in asked if (optimizer, place, *pair) not in done]
            if asked[1:] and left:
                tasks.append((optimizer, place, left))
    RESULTS.parent.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(run_group, tasks):
            known = {(r["optimizer"], r["mode"], r["fault"], r["arm"]) for r in found}
            results = [r for r in results if (r["optimizer"], r["mode"], r["fault"], r["arm"]) not in known] + found
            RESULTS.write_text(json.dumps(results, indent=1))
            print(f"{found[0]['optimizer']}, {found[0]['mode']}: {sum(r['seconds'] for r in found):.0f} s", flush=True)
    return results


if __name__ == "__main__":
    main()
