import json
import random
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.rescue.edits import OWN

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 5)).astype("float32")
Y = X @ np.array([1.0, -2.0, 0.5, 1.5, -1.0], "float32")


def regression(rate=3.0, **layers):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", metrics=["mae"])
    return model


@pytest.fixture(scope="module")
def rescued():
    model = regression()
    return model, gr.rescue(model, X, Y, batch_size=32, epochs=12)


def test_a_rate_that_is_too_high_is_rescued(rescued):
    model, found = rescued
    assert found.verdict == "rescued"
    assert found.evidence.proof.wins
    assert len(found.evidence.proof.control) >= 2
    assert found.evidence.proof.interval.low > 0
    assert found.evidence.final > 0.9
    assert sum(found.evidence.costs.values()) == pytest.approx(found.evidence.trainings)
    assert found.model is not model
    found.model.fit(X, Y, epochs=12, verbose=0, **found.fit_arguments)
    residual = found.model.predict(X, verbose=0)[:, 0] - Y
    assert (residual**2).mean() < 0.1 * Y.var()


def test_the_answer_is_one_screen_and_json_and_a_page(rescued, tmp_path):
    _, found = rescued
    lines = str(found).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    told = json.loads(found.to_json())
    assert told["verdict"] == "rescued"
    assert len(told["evidence"]["trials"]) == len(found.evidence.trials)
    assert "+ optimizer=" in found.as_code()
    found.save_html(tmp_path / "page.html")
    assert "Rescued" in (tmp_path / "page.html").read_text()


def test_each_change_has_a_measured_need(rescued):
    _, found = rescued
    assert all(change.needed > 0 for change in found.changes)


def badly_initialized():
    keras.utils.set_random_seed(1)
    huge = keras.initializers.RandomNormal(0.0, 6.0, seed=1)
    layers = [keras.layers.Dense(16, "relu", kernel_initializer=huge) for _ in range(4)]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dropout(0.1), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    return model


@pytest.mark.slow
def test_the_answer_does_not_depend_on_what_ran_before_in_the_process():
    answers = []
    for place in range(2):
        found = gr.rescue(badly_initialized(), X, Y, epochs=6)
        answers.append((found.verdict, found.changes, [(one.changes, one.score) for one in found.evidence.trials]))
        assert any("initializers" in one.changes for one in found.evidence.trials)
        if not place:
            other = keras.Sequential([keras.Input((5,)), *[keras.layers.Dense(1) for _ in range(7)]])
            other.compile("adam", "mse")
            keras.utils.set_random_seed(99)
            other.fit(X, Y, verbose=0)
            random.seed(5), np.random.seed(6)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("budget", [1, 20, 150])
def test_the_budget_is_never_exceeded(budget):
    found = gr.rescue(regression(), X, Y, batch_size=32, epochs=6, budget=budget)
    assert found.evidence.spent_steps <= budget
    assert found.evidence.complete or budget < 150 or found.verdict == "rescued"
    if not found.evidence.trials:
        assert "out of budget" in str(found)


@pytest.mark.slow
def test_nothing_of_the_users_is_touched():
    model = regression()
    model.fit(X, Y, epochs=1, verbose=0)  # slots and counters that must stay
    before = [np.array(one) for one in [*model.variables, *model.optimizer.variables]]
    function = model.train_function
    random.seed(3), np.random.seed(3), tf.random.set_seed(3)
    expected = random.random(), np.random.uniform(), float(tf.random.uniform(()))
    random.seed(3), np.random.seed(3), tf.random.set_seed(3)
    gr.rescue(model, X, Y, epochs=1, budget=20)
    assert (random.random(), np.random.uniform(), float(tf.random.uniform(()))) == expected
    after = [np.array(one) for one in [*model.variables, *model.optimizer.variables]]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))
    assert model.train_function is function


def test_a_healthy_model_is_returned_as_it_was():
    model = regression(0.03)
    found = gr.rescue(model, X, Y, epochs=15)
    assert found.verdict == "nothing needed"
    assert found.model is model
    assert found.changes == ()
    assert found.as_code() == ""
    assert found.before == found.after


def weak_signal():
    """A few epochs of a faint signal: the loss still falls at the end, and is not below a constant prediction's yet."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 12)).astype("float32")
    y = (0.2 * x[:, 0] + 0.15 * x[:, 1] + rng.normal(size=3000)).astype("float32")
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model, x, y, {"batch_size": 64, "epochs": 6}


def not_to_be_copied():
    keras.utils.set_random_seed(1)
    model = Subclassed()
    model.lock = threading.Lock()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model, X, Y[:, None], {"epochs": 6}


def few_rows_and_other_rows_held_back():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    other = RNG.normal(size=12).astype("float32")
    return model, X[:60], Y[:60], {"epochs": 25, "validation_data": (X[:12] + 5.0, other)}


@pytest.mark.slow
@pytest.mark.parametrize("build", [weak_signal, not_to_be_copied, few_rows_and_other_rows_held_back])
def test_a_sound_training_of_which_held_back_data_say_little_needs_nothing(build):
    model, x, y, arguments = build()
    found = gr.rescue(model, x, y, **arguments)
    assert found.verdict == "nothing needed"
    assert found.model is model
    assert "no better than that of a constant" in " ".join(str(found).split()) or not found.evidence.spent_steps


@pytest.mark.slow
def test_class_weights_of_the_user_are_used_and_kept():
    weights, marks = {0: 1.0, 1: 2.0}, (Y > 0).astype("float32")[:, None]
    model = keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    found = gr.rescue(model, X, marks, class_weight=weights, epochs=8)
    assert found.verdict == "nothing needed"
    assert found.diagnosis.trace.probes.data.sample_weight[0].max == 2.0
    assert found.fit_arguments["class_weight"] == weights


@pytest.mark.slow
def test_targets_that_are_noise_are_not_rescued():
    noise = RNG.normal(size=300).astype("float32")
    found = gr.rescue(regression(), X, noise, epochs=3, budget=400)
    assert found.verdict == "not rescued"
    assert found.changes == ()


@pytest.mark.slow
def test_a_rescue_resumes_from_its_journal(tmp_path, monkeypatch):
    journal, told = tmp_path / "journal.jsonl", []
    first = gr.rescue(regression(), X, Y, epochs=3, budget=300, journal=journal)
    monkeypatch.setattr("gradrecipes.rescue.arm.Arm.train", lambda *_: pytest.fail("trained again"))
    again = gr.rescue(regression(), X, Y, epochs=3, budget=300, journal=journal, tell=told.append)
    assert [one.score for one in again.evidence.trials] == pytest.approx([one.score for one in first.evidence.trials])
    assert again.verdict == first.verdict
    assert again.evidence.spent_steps == first.evidence.spent_steps
    assert told


def test_an_interrupt_gives_what_is_proven_by_then():
    def interrupt(words):
        if "rate_0.01" in words:
            raise KeyboardInterrupt

    found = gr.rescue(regression(), X, Y, epochs=3, tell=interrupt)
    assert not found.evidence.complete
    assert found.verdict == "not rescued"
    assert "out of budget, before a change was confirmed" in " ".join(str(found).split())
    assert "divide the learning rate by" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "py_dataset", "nested"])
def test_every_kind_of_data_is_read(kind):
    model, x, y = regression(), X, Y
    if kind == "dataset":
        x, y = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32), None
    elif kind == "py_dataset":

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 9

            def __getitem__(self, index):
                return X[index * 32 : (index + 1) * 32], Y[index * 32 : (index + 1) * 32]

        x, y = Batches(), None
    else:
        keras.utils.set_random_seed(1)
        inputs = {"a": keras.Input((5,), name="a"), "b": keras.Input((5,), name="b")}
        model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(list(inputs.values()))))
        model.compile(keras.optimizers.SGD(3.0), "mse")
        x = {"a": X, "b": X[:, ::-1].copy()}
    found = gr.rescue(model, x, y, epochs=5, budget=400)
    assert found.verdict == "rescued"
    assert ("batch_size" in found.fit_arguments) == (kind == "nested")


class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of a script: without a config, and not registered."""

    def __call__(self, step):
        return 0.03 * keras.ops.minimum(1.0, (keras.ops.cast(step, "float32") + 1.0) / 10.0)


def test_several_inputs_in_a_list_and_a_schedule_of_a_script_are_trained():
    keras.utils.set_random_seed(1)
    inputs = [keras.Input((5,)), keras.Input((5,))]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    model.compile(keras.optimizers.SGD(Ramp()), "mse")
    found = gr.rescue(model, [X, X[:, ::-1].copy()], Y, epochs=8)
    assert found.verdict == "nothing needed"
    assert found.evidence.control > 0.5


@pytest.mark.parametrize("y", [Y, Y[:, None]])
def test_a_dataset_without_batches_is_refused(y):
    with pytest.raises(ValueError, match=r"call dataset.batch\(32\)"):
        gr.rescue(regression(), tf.data.Dataset.from_tensor_slices((X, y)), epochs=1)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.head = keras.layers.Dense(1)

    def call(self, x):
        return self.head(self.hidden(x))


@pytest.mark.slow
def test_a_subclassed_model_of_frozen_layers_is_rescued_in_place():
    keras.utils.set_random_seed(1)
    model = Subclassed()
    model(X)
    model.trainable = False
    model.compile(keras.optimizers.SGD(0.03), "mse")
    found = gr.rescue(model, X, Y, epochs=8)
    assert (found.verdict, [change.name for change in found.changes]) == ("rescued", ["unfreeze"])
    assert found.as_code().splitlines() == ["# Before compile", "+ model.trainable = True"]
    assert (len(found.model.trainable_weights), len(model.trainable_weights)) == (4, 0)
    assert found.after.activation == OWN


@pytest.mark.parametrize(("argument", "value"), [("epochs", 0), ("budget", 0), ("seed", -1), ("batch_size", 0)])
def test_a_number_out_of_range_is_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        gr.rescue(regression(), X, Y, **{"epochs": 1, argument: value})


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="not compiled"):
        gr.rescue(keras.Sequential([keras.layers.Dense(1)]), X, Y, epochs=1)


def logarithmic(loss):
    """A model whose output is the logarithm of what is wanted, so that no score of numbers can judge it."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), loss)
    return model


def test_a_loss_of_the_users_own_that_is_learned_needs_nothing():
    def deviance(y, predicted):
        return keras.ops.mean(y * keras.ops.exp(-predicted) + predicted, axis=-1)

    found = gr.rescue(logarithmic(deviance), X, np.exp(Y)[:, None], epochs=20)
    assert found.verdict == "nothing needed"


@pytest.mark.slow
def test_a_loss_that_takes_the_logarithm_of_a_linear_output_is_rescued():
    def likelihood(y, predicted):
        mean, spread = predicted[:, :1], predicted[:, 1:]
        return keras.ops.mean(keras.ops.log(spread) + 0.5 * keras.ops.square((y - mean) / spread))

    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), likelihood)
    found = gr.rescue(model, X, Y[:, None], epochs=12)
    assert found.verdict == "rescued"
    assert "positive_outputs" in [change.name for change in found.changes]
    assert found.model.predict(X, verbose=0)[:, 1].min() > 0
    assert "keras.ops.softplus(outputs[..., 1:2]) + 0.001" in found.as_code()


@pytest.mark.slow
def test_a_dataset_in_the_order_of_its_classes_is_shuffled_and_one_in_any_other_is_not():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    held, rows = np.arange(1400, len(x)), np.arange(1400)

    def found(order):
        keras.utils.set_random_seed(3)
        net = [keras.Input((64,)), keras.layers.Dense(32, use_bias=False), keras.layers.BatchNormalization()]
        model = keras.Sequential([*net, keras.layers.ReLU(), keras.layers.Dense(10, "softmax")])
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(32)
        return gr.rescue(model, dataset, epochs=6, validation_data=(x[held], y[held]))

    mended = found(rows[np.argsort(y[rows], kind="stable")])
    assert (mended.verdict, [change.name for change in mended.changes]) == ("rescued", ["shuffle"])
    assert mended.evidence.final > 0.85 and mended.evidence.final_share == 0.5  # settled: within 5% of its end
    assert "+ dataset = dataset.unbatch().shuffle(" in mended.as_code()
    assert found(rows).verdict == "nothing needed"


@pytest.mark.slow
def test_a_likelihood_is_rescued_as_it_is_and_not_exchanged_for_a_distance():
    def likelihood(y, predicted):  # of counts, by their rate
        return keras.ops.mean(predicted - y * keras.ops.log(predicted), axis=-1)

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1, "relu")])
    model.compile(keras.optimizers.Adam(1e-3), likelihood)
    counts = np.minimum(RNG.poisson(np.exp(3.5 + 0.4 * Y)), 400).astype("float32")[:, None]
    found = gr.rescue(model, X, counts, epochs=40)
    assert found.verdict == "rescued"
    assert (found.after.loss, found.after.head) == (found.before.loss, "softplus")
    predicted = found.model
    predicted.fit(X, counts, epochs=40, verbose=0, **found.fit_arguments)
    assert (
        float(likelihood(counts, predicted.predict(X, verbose=0)).numpy().mean())
        < (counts - counts * np.log(counts.mean())).mean()
    )
