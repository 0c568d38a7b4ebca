from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.callbacks.fit_recorder import WatchedFits
from gradrecipes.cli.main import main
from tests.seeds import begin_anew

ROOT = Path(__file__).resolve().parents[2]

# An unchanged script: nothing of gradrecipes in it.
SCRIPT = """\
import keras
import numpy as np

EAGERLY = True  # twenty steps do not pay for a graph

def net(scale=2.0, layers=2, rate=0.05):
    model = keras.Sequential([keras.Input((8,))])
    for seed in range(layers):
        start = keras.initializers.VarianceScaling(scale, "fan_in", "untruncated_normal", seed=seed)
        model.add(keras.layers.Dense(16, activation="relu", kernel_initializer=start))
    model.add(keras.layers.Dense(1))
    model.compile(optimizer=keras.optimizers.SGD(rate), loss="mse", run_eagerly=EAGERLY)
    return model

x = np.random.default_rng(0).normal(size=(320, 8)).astype("float32")
y = x[:, :2].sum(axis=1, keepdims=True)
"""
HEALTHY = "model = net()\nmodel.fit(x, y, batch_size=32, verbose=0)\n"
EXPLODING = "net(60.0, 6, 0.5).fit(x, y, batch_size=32, verbose=0)\n"


@pytest.fixture
def watch(tmp_path, monkeypatch, capfd):
    """Return a function that watches a script made of lines, and returns code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def watch(lines, *arguments, options=("--json",)):
        (tmp_path / "train.py").write_text(SCRIPT + lines)
        capfd.readouterr()
        before = (sys.argv, list(sys.argv), list(sys.path), keras.Model.fit, "fit" in vars(keras.Model))
        try:
            code = main(["watch", *options, "--out", "seen", "train.py", *arguments])
        finally:
            assert sys.argv is before[0]
            assert (list(sys.argv), list(sys.path), keras.Model.fit, "fit" in vars(keras.Model)) == before[1:]
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return watch


def traces():
    return [gr.Trace.load(path) for path in sorted(Path("seen").glob("*.trace"))]


def codes(out):
    return [[finding["code"] for finding in one["findings"]] for one in json.loads(out)]


def test_a_healthy_script_gives_0_and_a_trace_that_loads(watch):
    code, out, _ = watch(HEALTHY)
    assert (code, codes(out)) == (0, [[]])
    (trace,) = traces()
    assert len(trace) == 10
    assert trace.layers[-1].startswith("dense")
    assert np.isfinite(trace.gradient_norm).all()


@pytest.mark.slow
def test_an_exploding_script_gives_1_and_says_why_in_the_terminal_and_on_a_page(watch):
    code, out, err = watch(EXPLODING, options=())
    assert code == 1
    assert "== sequential" in out and "Unhealthy" in out and "exploding_initialization" in out
    assert "HTML page: seen/train.html; traces beside it" in err
    assert Path("seen/train.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_a_script_that_raises_gives_2_its_own_traceback_and_the_diagnosis_of_what_was_recorded(watch):
    code, out, err = watch(EXPLODING + "def broken():\n    return [][0]\n\nbroken()\n")
    assert code == 2
    assert "exploding_initialization" in codes(out)[0]
    assert "in broken\n    return [][0]" in err and "IndexError: list index out of range" in err
    assert "runpy" not in err and "gradrecipes/cli" not in err
    assert err.splitlines()[-1].startswith("gradrecipes: error: The script 'train.py' raised IndexError")
    assert len(traces()) == 1


@pytest.mark.slow
def test_a_fit_that_raises_in_the_middle_keeps_what_was_recorded(watch):
    stop = "class Stop(keras.callbacks.Callback):\n    def on_train_batch_end(self, batch, logs=None):\n"
    stop += "        if batch == 5:\n            raise RuntimeError('disk full')\n"
    code, _, err = watch(stop + "net().fit(x, y, batch_size=32, verbose=0, callbacks=[Stop()])\n")
    assert code == 2
    assert "RuntimeError: disk full" in err
    assert [len(trace) for trace in traces()] == [6]


def test_a_syntax_error_is_shown_with_its_line(watch):
    code, _, err = watch("def (:\n")
    assert code == 2
    assert "SyntaxError" in err and "def (:" in err and "runpy" not in err


@pytest.mark.parametrize("name", ["none.py", "."])
def test_a_missing_script_is_one_clear_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"There is no script at '{name}'" in captured.err


def test_a_wrong_sampling_interval_is_one_clear_line(watch):
    code, _, err = watch(HEALTHY, options=("--sample-every", "0"))
    assert code == 2
    assert err == "gradrecipes: error: --sample-every must be at least 1 step. Received: 0.\n"


def test_the_script_sees_its_own_arguments_name_and_folder(watch, tmp_path):
    (tmp_path / "neighbour.py").write_text("FRIENDLY = True\n")
    lines = "import sys\nimport neighbour\nassert neighbour.FRIENDLY and __name__ == '__main__'\n"
    lines += "assert sys.argv == ['train.py', '--epochs', '3', '--json'], sys.argv\n"
    code, out, _ = watch(lines + HEALTHY, "--epochs", "3", "--json")
    sys.modules.pop("neighbour")
    assert code == 0
    assert codes(out) == [[]]


@pytest.mark.slow
def test_every_model_has_a_trace_of_its_own_and_one_that_goes_on_has_one(watch):
    code, out, _ = watch(
        "first, second = net(), net()\n"
        + "".join(f"{name}.fit(x, y, batch_size=32, verbose=0)\n" for name in ("first", "first", "second"))
    )
    assert code == 0
    assert [one["trace"]["steps"] for one in json.loads(out)] == [20, 10]
    assert [len(trace) for trace in traces()] == [20, 10]
    assert traces()[0].steps["step"].tolist() == list(range(20))


@pytest.mark.slow
def test_one_bad_fit_among_good_ones_gives_1(watch):
    code, out, _ = watch(HEALTHY + EXPLODING)
    assert code == 1
    assert [one["healthy"] for one in json.loads(out)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "model.fit(x, y, 32, 1, 0, [seen])",
        "model.fit(x, y, 32, verbose=0, callbacks=seen)",
        "model.fit(x, y, 32, verbose=0, callbacks=(seen,))",
        "model.fit(x, y, 32, verbose=0, callbacks="
        "keras.callbacks.CallbackList([seen], add_history=True, model=model, epochs=1, verbose=0, steps=10))",
        "keras.Model.fit(model, x=x, y=y, batch_size=32, verbose=0, callbacks=[seen])",
    ],
    ids=["by position", "one alone", "tuple", "CallbackList", "through the class"],
)
def test_the_callbacks_of_the_script_still_run(call, watch):
    lines = (
        "batches = []\nseen = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: batches.append(b))\n"
    )
    code, _, err = watch(f"model = net()\n{lines}{call}\nassert batches == list(range(10)), batches\n")
    assert code == 0, err
    assert [len(trace) for trace in traces()] == [10]


@pytest.mark.slow
def test_a_monitor_of_the_script_is_used_and_stays_its_own(watch):
    lines = "import gradrecipes as gr\nown = gr.GradientMonitor(sample_every=5)\nmodel = net()\n"
    lines += "model.fit(x, y, batch_size=32, verbose=0, callbacks=[own])\nassert len(own.trace) == 10\n"
    code, _, err = watch(lines)
    assert code == 0, err
    (trace,) = traces()
    assert {0, 5} <= set(trace.samples["step"].tolist())


@pytest.mark.slow
def test_a_guard_of_the_script_is_joined_by_a_monitor(watch):
    lines = "import gradrecipes as gr\nmodel = net()\n"
    lines += "model.fit(x, y, batch_size=32, verbose=0, callbacks=[gr.GradientGuard()])\n"
    code, _, err = watch(lines)
    assert code == 0, err
    (trace,) = traces()
    assert np.isfinite(trace.samples["weight_norm"]).any()


@pytest.mark.slow
def test_a_failing_exit_code_of_the_script_is_named_and_a_good_one_is_none(watch):
    code, out, err = watch(HEALTHY + "import sys\nsys.exit(3)\n")
    assert code == 2
    assert codes(out) == [[]]
    assert "ended itself with exit code 3" in err and "Traceback" not in err and err.count("\n") == 1
    assert watch(HEALTHY + "raise SystemExit\n")[0] == 0


def test_an_exit_message_of_the_script_is_passed_on(watch):
    code, _, err = watch(HEALTHY + "raise SystemExit('no data left')\n")
    assert code == 2
    assert "no data left" in err


def test_a_script_without_fit_gives_2_and_points_to_the_pipeline(watch):
    code, out, err = watch("net().predict(x[:4], verbose=0)\n", options=())
    assert code == 2
    assert out == ""
    assert "called no keras.Model.fit" in err and "GradientPipeline" in err


@pytest.mark.slow
def test_ctrl_c_diagnoses_what_was_recorded_and_gives_130(watch):
    code, out, err = watch(EXPLODING + "raise KeyboardInterrupt\n")
    assert code == 130
    assert "exploding_initialization" in codes(out)[0]
    assert err.splitlines()[-1] == "gradrecipes: interrupted"
    assert len(traces()) == 1


@pytest.mark.slow
def test_without_jinja2_the_diagnosis_is_printed_all_the_same(watch, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = watch(HEALTHY, options=())
    assert code == 0
    assert "Healthy" in out
    assert "pip install 'gradrecipes[report]'" in err


def test_watching_changes_no_weight():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)

    def train():
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
        model.compile(optimizer="adam", loss="mse")
        model.fit(x, x[:, :1], batch_size=16, epochs=2, verbose=0)
        return model.get_weights()

    plain = train()
    with WatchedFits(gr.GradientMonitor).watching():
        watched = train()
    for one, other in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_process_that_has_not_imported_keras_yet_is_watched_too(tmp_path):
    script = "import os\nos.environ['KERAS_BACKEND'] = 'tensorflow'\nimport sys\nassert 'keras' not in sys.modules\n"
    (tmp_path / "train.py").write_text(script + SCRIPT.replace("EAGERLY = True", "EAGERLY = False") + EXPLODING)
    run = subprocess.run(
        [sys.executable, "-m", "gradrecipes", "watch", "--json", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "exploding_initialization" in codes(run.stdout)[0]
    assert (tmp_path / "out" / "watch" / "train-1.trace").is_file()


LAYERED = """\
import random
import sys

keras.utils.set_random_seed(3)
layers = [keras.layers.GaussianNoise(0.1), keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
layers += [keras.layers.Dropout(0.3), keras.layers.Dense(1)]
model = keras.Sequential(layers)  # Keras builds it when it sees the data
model.compile("adam", "mse", metrics=["mae"])
model.fit(x, y, epochs=2, verbose=0)
more = [random.random(), np.random.random(), float(keras.random.normal(()))]
np.savez(sys.argv[1], *[np.array(one) for one in model.variables], np.array(more))
"""


@pytest.mark.slow
def test_a_watched_script_comes_to_the_same_bits_and_its_probes_join_the_trace(watch, tmp_path):
    (tmp_path / "plain.py").write_text(SCRIPT + LAYERED)
    argv = sys.argv
    sys.argv = ["plain.py", "plain.npz"]
    begin_anew()
    try:
        runpy.run_path(str(tmp_path / "plain.py"), run_name="__main__")
    finally:
        sys.argv = argv
    begin_anew()
    code, out, _ = watch(LAYERED, "watched.npz")
    assert (code, codes(out)) == (0, [[]])
    plain, watched = np.load("plain.npz"), np.load("watched.npz")
    assert plain.files == watched.files
    assert all(np.array_equal(plain[name], watched[name]) for name in plain.files)
    (trace,) = traces()
    assert trace.probes.signal is None and trace.probes.loss is None  # what is not built yet sends no signal
    assert trace.probes.data.samples == 320


@pytest.mark.slow
def test_causes_that_only_the_data_show_are_named(watch):
    code, out, _ = watch("x[7, 3] = np.nan\n" + HEALTHY)
    assert code == 1
    assert "nonfinite_data" in codes(out)[0]


@pytest.mark.slow
def test_a_probe_that_fails_does_not_break_the_script(watch, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("not today")

    monkeypatch.setattr("gradrecipes.probes.examine.signal", fails)
    code, _, err = watch(HEALTHY)
    assert code == 0 and "not today" not in err
    (trace,) = traces()
    assert None not in (trace.probes.data, trace.probes.loss) and trace.probes.signal is None


@pytest.mark.slow
def test_of_several_fits_each_has_one_line_and_only_the_unhealthy_one_a_page(watch):
    code, out, _ = watch(HEALTHY + HEALTHY + EXPLODING, options=())
    assert code == 1
    lines = [line for line in out.splitlines() if "train.py, line" in line and not line.startswith("==")]
    assert [("Healthy" in line, "Unhealthy" in line) for line in lines] == [(True, False), (True, False), (False, True)]
    assert out.count("\n== ") == 1


@pytest.mark.slow
def test_a_fit_that_cannot_be_watched_is_named_and_leaves_the_verdict_undecided(watch):
    lines = (
        "import tensorflow as tf\n"
        "class Assigned(keras.Sequential):\n"
        "    def train_step(self, data):\n"
        "        for weight in self.trainable_weights:\n"
        "            weight.assign(0.9 * weight)\n"
        "        return {'done': tf.constant(1.0)}\n"
        "model = Assigned([keras.Input((8,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse', run_eagerly=True)\n"
        "assert list(model.fit(x, y, verbose=0).history) == ['done']\n"
    )
    code, _, err = watch(lines, options=())
    assert code == 0, err
    assert err.count("is not watched") == 1
    assert "undecided" in err
