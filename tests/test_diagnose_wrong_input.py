"""Whatever is handed to gr.diagnose becomes a clear error or a finding, and the model is left as it was."""

from __future__ import annotations

import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8)).astype("float32")
Y = X[:, :1].copy()


def gone():
    """Return a new error: one that is raised again carries the frames of the last time."""
    return RuntimeError("the disk is gone")


def net(outputs=1, loss="mse", *, compiled=True):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(outputs)])
    if compiled:
        model.compile("adam", loss)
    return model


class WithoutWeights(keras.Model):
    def call(self, x):
        return tf.reduce_mean(x, axis=-1, keepdims=True)


class Raising(keras.Model):
    """Raises where it is told to: in its call, or in its train step."""

    def __init__(self, where):
        super().__init__()
        self.where, self.dense = where, keras.layers.Dense(1)

    def call(self, x):
        if self.where == "call":
            raise ValueError("a mistake of my own")
        return self.dense(x)

    def train_step(self, data):
        if self.where == "step":
            raise KeyError("labels")
        return super().train_step(data)


class LosesAFile(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise gone()
        return X[:8], Y[:8]


def breaking(batches=2):
    for _ in range(batches):
        yield X[:8], Y[:8]
    raise gone()


def dataset(generator):
    signature = (tf.TensorSpec((None, None)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(generator, output_signature=signature)


def narrowing():
    yield X[:8], Y[:8]
    yield X[:8, :5], Y[:8]


def compiled(model):
    model.compile("sgd", "mse")
    return model


def divides(y_true, y_pred):
    raise ZeroDivisionError("in my loss")


def refusals():
    model = net()
    samples = tf.data.Dataset.from_tensor_slices((X, Y))
    yield "not compiled", (net(compiled=False), X, Y), {}, ValueError, r"is not compiled.*Call model\.compile"
    yield "a class", (keras.Sequential, X, Y), {}, TypeError, r"not its class: diagnose\(Sequential"
    yield "a layer", (keras.layers.Dense(3), X, Y), {}, TypeError, "Received: a Dense. Build a keras.Model"
    yield "an object", (object(), X, Y), {}, TypeError, "needs a compiled model or a Trace"
    yield "no weights", (compiled(WithoutWeights()), X, Y), {}, ValueError, "0 weights, none of them made to be trained"
    yield "x missing", (model, None, Y), {}, ValueError, "Received: x=None"
    yield "no samples", (model, X[:0], Y[:0]), {}, ValueError, "The data are empty"
    yield "empty lists", (model, [], []), {}, ValueError, "The data are empty"
    yield "empty dataset", (model, samples.batch(8).take(0)), {}, ValueError, "The data are empty.*gave no batch"
    yield "empty generator", (model, iter(())), {}, ValueError, "The data are empty.*gave no batch"
    yield "counts", (model, X, Y[:-1]), {}, ValueError, "Received: x: 64, y: 63"
    yield "weights", (model, X, Y), {"sample_weight": np.ones(5)}, ValueError, "sample_weight: 5"
    yield "y twice", (model, samples.batch(8), Y), {}, ValueError, "brings its targets itself"
    yield "objects", (model, np.full((64, 8), object()), Y), {}, TypeError, "arrays of numbers. Received: dtype object"
    yield "text", (model, np.full((64, 8), "a"), Y), {}, TypeError, r"dtype <U1.*astype\('float32'\)"
    yield "text in y", (model, X, np.full(64, "cat")), {}, TypeError, "`y` must be arrays of numbers"
    yield "a path", (model, "data.csv", Y), {}, TypeError, r"the first value \['data.csv'\]"
    yield "complex", (model, X.astype(complex), Y), {}, TypeError, "dtype complex128"
    yield "times", (model, X.astype("datetime64[s]"), Y), {}, TypeError, "dtype datetime64"
    yield "a number", (model, 3, Y), {}, ValueError, "Received: the single number 3"
    yield "lists", (model, X.tolist(), Y), {}, TypeError, r"64 lists of numbers.*numpy\.asarray\(x\)"
    yield "ragged lists", (model, [[1, 2], [3]], Y[:2]), {}, TypeError, "2 lists of numbers"
    yield "batches of None", (model, iter([None])), {}, ValueError, "A batch must be.*Received: None"
    yield "batches of four", (model, iter([(X, Y, Y, Y)])), {}, ValueError, "Received: a tuple of 4 parts"
    yield "batches of text", (model, iter(["abc"])), {}, TypeError, "arrays of numbers"
    yield "batch of 0", (model, X, Y), {"batch_size": 0}, ValueError, "batch_size=0"
    yield "batch of text", (model, X, Y), {"batch_size": "32"}, ValueError, "batch_size='32'"
    yield "seed", (model, X, Y), {"seed": -1}, ValueError, "seed=-1"
    yield "tell", (model, X, Y), {"tell": 3}, TypeError, "Try tell=print"
    for name, source in (
        ("generator", breaking()),
        ("first batch", breaking(0)),
        ("dataset", dataset(breaking)),
        ("PyDataset", LosesAFile()),
    ):
        words = (
            r"could not be read. Received: [02] batches of the \w+, then RuntimeError: the disk is gone\. model\.fit"
        )
        yield f"{name} raises", (model, source), {}, ValueError, words
    for name, given, words in (
        ("number", 3, "`validation_data` cannot be used. `x` must have one row"),
        ("counts", (X, Y[:3]), "`validation_data` cannot be used. All data must have one number"),
        ("empty", (X[:0], Y[:0]), "`validation_data` cannot be used. The data are empty"),
        ("shapes", (X[:, :3], Y), r"`validation_data` must fit.*\[3\]; those of the training data are \[8\]"),
    ):
        yield f"validation: {name}", (model, X, Y), {"validation_data": given}, ValueError, words


REFUSALS = {name: rest for name, *rest in refusals()}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_trained_on_is_refused_in_words(name):
    arguments, options, kind, words = REFUSALS[name]
    with pytest.raises(kind, match=words) as caught:
        gr.diagnose(*arguments, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert "tensorflow" not in shown.lower().replace("/tensorflow.py", ""), shown
    assert "\x1b" not in str(caught.value)


FAILURES = {
    "too few columns": (lambda: (net(), X[:, :5], Y), "expected axis -1 of input shape to have value 8"),
    "no axis of columns": (lambda: (net(), X[:, 0], Y), "incompatible shape"),
    "a dict": (lambda: (net(), {"pixels": X}, Y), "structure of `inputs` doesn't match"),
    "no batch axis": (lambda: (net(), tf.data.Dataset.from_tensor_slices((X, Y))), "incompatible shape"),
    "targets of another rank": (lambda: (net(), X, np.zeros((64, 3, 2), "float32")), "3 and 32"),
    "no targets": (lambda: (net(), X), r"bring no targets \(y is None\)"),
    "a dataset without targets": (lambda: (net(), tf.data.Dataset.from_tensor_slices(X).batch(8)), "no targets"),
    "no loss": (lambda: (net(loss=None), X, Y), "No loss to compute"),
    "a loss that raises": (lambda: (net(loss=divides), X, Y), "in my loss"),
    "a call that raises": (lambda: (compiled(Raising("call")), X, Y), "a mistake of my own"),
    "a step that raises": (lambda: (compiled(Raising("step")), X, Y), "labels"),
}
TRACED = {  # these are found by a step that runs, so a graph has to be traced
    "labels beyond the units": (lambda: (net(3, "sparse_categorical_crossentropy"), X, np.full(64, 7)), "7 which is"),
    "batches of other shapes": (lambda: (net(), dataset(narrowing)), r"\[8,5\]"),
}


@pytest.mark.parametrize("name", [*FAILURES, *(pytest.param(name, marks=pytest.mark.slow) for name in TRACED)])
def test_a_step_that_cannot_run_is_a_finding(name):
    make, words = {**FAILURES, **TRACED}[name]
    diagnosis = gr.diagnose(*make())
    found = {finding.code: finding for finding in diagnosis.findings}
    assert not diagnosis.healthy
    assert "failing_step" in found or "loss_output_mismatch" in found
    shown = diagnosis.full()
    assert words.replace("\\", "") in " ".join(shown.split()) or "loss_output_mismatch" in found
    assert "Traceback" not in shown and 'File "' not in shown and "{{node" not in shown and "\x1b" not in shown
    assert diagnosis.to_json() and diagnosis._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_everywhere_are_a_finding(value):
    diagnosis = gr.diagnose(net(), np.full_like(X, value), Y)
    assert not diagnosis.healthy
    assert diagnosis.findings[0].code == "nonfinite_data"


def test_a_batch_larger_than_the_data_and_a_single_sample_are_taken():
    assert gr.diagnose(net(), X[:1], Y[:1], batch_size=1000).trace.description.batch_size == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_an_interruption_anywhere_leaves_the_model_as_it_was(part):
    model = net()
    before, told = [np.array(weight) for weight in model.variables], []

    def tell(words):
        told.append(words)
        if len(told) > part:
            raise KeyboardInterrupt

    # Loss and gradient explode, so that the trial is varied and the last part is reached.
    with pytest.raises(KeyboardInterrupt):
        gr.diagnose(model, X * np.float32(1e30), Y, tell=tell)
    assert len(told) == part + 1
    assert all(np.array_equal(one, np.array(weight)) for one, weight in zip(before, model.variables, strict=True))
    assert not any(np.any(np.array(one)) for one in model.optimizer.variables if "learning_rate" not in one.path)
    assert float(model.optimizer.learning_rate) == np.float32(0.001)
    assert "learning_rate" not in vars(model.optimizer)
    assert model.steps_per_execution == 1 and model.train_function is None


def test_a_step_that_raises_while_its_weights_are_created_is_told_not_raised():
    class Early(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([keras.layers.Dense(1)])

        def call(self, x):
            return self.inner(x)

        def train_step(self, data):
            x, y = data
            weights = self.inner.trainable_variables  # none are there before the first call
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

    model = Early()
    model.compile("sgd")
    diagnosis = gr.diagnose(model, X, Y, batch_size=16)
    assert [finding.code for finding in diagnosis.findings] == ["failing_step"]
