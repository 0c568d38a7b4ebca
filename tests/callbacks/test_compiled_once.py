"""Under XLA a step is compiled once: nothing in it is a constant that changes from step to step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import gradrecipes as gr
from tests.training.nets import compiled, digits, two_dense

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path

import keras

import gradrecipes as gr
from tests.training.nets import compiled, digits, two_dense

x, y = digits(256)
with_memory = [method for method in gr.clipping.METHODS if method().make_state(2)]
for method in (None, gr.clipping.by_global_norm, *with_memory):  # of those without a memory, one stands for all
    keras.utils.set_random_seed(0)
    model = compiled(two_dense(), jit_compile=True)
    callbacks = [gr.GradientMonitor(), gr.GradientGuard(clipping=None if method is None else method())]
    counts = []
    for _ in range(2):
        model.fit(x, y, epochs=2, batch_size=32, verbose=0, callbacks=callbacks)
        counts.append(len(list(Path(sys.argv[1]).glob("*.before_optimizations.txt"))))
    print(getattr(method, "__name__", "none"), *counts)
"""


@pytest.mark.slow
def test_later_fits_compile_nothing(tmp_path):
    flags = f"--xla_dump_to={tmp_path} --xla_backend_optimization_level=0"  # it counts programs, and runs few steps
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]  # XLA writes a file for each program that it compiles
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {name: (int(first), int(second)) for name, first, second in map(str.split, done.stdout.splitlines())}
    with_memory = {method.__name__ for method in gr.clipping.METHODS if method().make_state(2)}
    assert set(rows) == {"none", "by_global_norm", *with_memory} and len(with_memory) > 2
    before = 0
    for name, (first, second) in rows.items():
        assert before < first == second, name
        before = second


def test_two_optimizers_of_one_accumulate_and_clip_each_with_its_own_memory():
    x, y = digits(256)
    model = two_dense()
    optimizers = {layer.name: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2) for layer in model.layers}

    def choose(variable):
        return optimizers[variable.path.split("/")[-2]]

    multi = getattr(keras.optimizers, "MultiOptimizer", None)
    if multi is None:
        pytest.skip("this Keras has no MultiOptimizer")
    compiled(model, multi(choose))
    guard = gr.GradientGuard(clipping=gr.clipping.adaptive_by_tensor(warm_up=1))
    history = model.fit(x, y, epochs=4, batch_size=32, verbose=0, callbacks=[guard]).history
    assert history["loss"][-1] < history["loss"][0]
    assert guard.events == []


@pytest.mark.parametrize("make_once", [True, False])
def test_new_callbacks_for_every_fit_are_told_once_and_the_same_are_not(make_once, caplog):
    (x, y), model, once = digits(64), compiled(two_dense()), [gr.GradientMonitor(), gr.GradientGuard()]
    for _ in range(4):
        callbacks = once if make_once else [gr.GradientMonitor(), gr.GradientGuard()]
        model.fit(x, y, verbose=0, callbacks=callbacks)
    ours = [record for record in caplog.records if record.name.startswith("gradrecipes")]  # TensorFlow warns, too
    told = ["a new GradientGuard and a new GradientMonitor" in record.getMessage() for record in ours]
    assert told == ([] if make_once else [True])
    model.compile("sgd", "sparse_categorical_crossentropy")  # which has to be traced anew
    model.fit(x, y, verbose=0, callbacks=[gr.GradientMonitor(), gr.GradientGuard()])
    assert [record for record in caplog.records if record.name.startswith("gradrecipes")] == ours
