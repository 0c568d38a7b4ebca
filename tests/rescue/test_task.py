from dataclasses import replace

import keras
import numpy as np
import pytest

from gradrecipes.core.trace.description import OutputDescription
from gradrecipes.rescue.arm import _Steps
from gradrecipes.rescue.changes import catalogue
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.feed import is_marked, read_feed
from gradrecipes.rescue.lab import Lab
from gradrecipes.rescue.original import Setup, read_original
from gradrecipes.rescue.task import BINARY, CLASSES, NUMBERS, ONE_HOT, OWN_LOSS, Score, fitted, task_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 4)).astype("float32")
LABELS = RNG.integers(3, size=100)
SETUP = Setup(batch_size=32, epochs=1, loss="mse", head="linear", units=1)


class Fixed:
    """A model that always predicts the same."""

    def __init__(self, predicted):
        self.predicted = predicted

    def __call__(self, x, training):
        return self.predicted


def task(y, outputs=(), **settings):
    feed, _ = read_feed(X, y, batch_size=32, validation_data=(X, y))
    return task_of(feed, replace(SETUP, **settings), outputs)


@pytest.mark.parametrize(
    ("y", "settings", "kind"),
    [
        (LABELS, {"units": 3, "loss": "sparse_categorical_crossentropy"}, CLASSES),
        (LABELS, {"units": 1, "head": "softmax"}, CLASSES),
        (LABELS.astype("float32"), {"units": 3}, CLASSES),
        (np.eye(3)[LABELS], {"units": 3}, ONE_HOT),
        (LABELS % 2, {"head": "sigmoid", "loss": "binary_crossentropy"}, BINARY),
        (X[:, 0], {}, NUMBERS),
        (LABELS.astype("float32"), {}, NUMBERS),
        (X, {"units": 4}, NUMBERS),
        (X, {"units": 7}, OWN_LOSS),
        (np.ones(100), {}, OWN_LOSS),
    ],
)
def test_the_task_is_read_from_the_targets(y, settings, kind):
    assert task(y, **settings).kind == kind


def output(target, units, loss, activation):
    return OutputDescription(target=target, units=units, loss=loss, activation=activation)


TWO = (output(0, 3, "sparse_categorical_crossentropy", "softmax"), output(1, 1, "mse", "linear"))


def test_each_of_several_outputs_is_scored_by_itself():
    several = task({"kind": LABELS, "size": X[:, 0] * 1e4}, outputs=TWO)
    right, guess = np.eye(3)[LABELS], np.tile([1.0, 0, 0], (100, 1))
    sizes, mean = X[:, :1] * 1e4, np.full((100, 1), X[:, 0].mean() * 1e4)
    scores = [several.score(Fixed(pair), SETUP).value for pair in ((right, sizes), (guess, sizes), (guess, mean))]
    assert scores == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)
    assert several.score(Fixed((right, sizes + 1e6)), SETUP).value == pytest.approx(0.5)
    assert len(several.score(Fixed((right, sizes)), SETUP).samples) == 100
    assert several.numbers == {1: (1, "mse")}


def test_several_outputs_whose_targets_are_not_known_are_scored_by_their_loss():
    assert task(X[:, 0], outputs=(OutputDescription(), OutputDescription())).kind == OWN_LOSS


def test_a_perfect_model_scores_one_and_a_constant_prediction_the_baseline():
    classes = task(LABELS, units=3)
    assert classes.score(Fixed(np.eye(3)[LABELS]), SETUP).value == pytest.approx(1.0)
    assert classes.score(Fixed(np.tile([1.0, 0, 0], (100, 1))), SETUP).value == pytest.approx(1 / 3)
    numbers = task(X[:, 0])
    assert numbers.score(Fixed(X[:, :1]), SETUP).value == pytest.approx(1.0)
    assert numbers.score(Fixed(np.full((100, 1), X[:, 0].mean())), SETUP).value == pytest.approx(0.0, abs=1e-6)


def test_of_many_labels_a_sample_the_most_frequent_one_is_the_constant_prediction():
    tokens = np.where(RNG.uniform(size=(100, 8)) < 0.6, 0, RNG.integers(1, 5, size=(100, 8)))
    constant = np.tile(np.eye(5)[0], (100, 8, 1))
    one_hot = {"units": 5, "loss": "categorical_crossentropy", "head": "softmax"}
    for words in (task(tokens, units=5), task(np.eye(5)[tokens], **one_hot)):
        assert words.baseline_score == pytest.approx((tokens == 0).mean())
        assert words.measured == "accuracy"
        assert words.score(Fixed(constant), SETUP).value == pytest.approx(words.baseline_score)
    several = (X[:, :3] > [0.5, 0.0, -2.0]).astype(float)
    marks = task(several, units=3, loss="binary_crossentropy", head="sigmoid")
    assert marks.kind == BINARY
    assert marks.baseline_score == pytest.approx(np.mean(np.maximum(several.mean(axis=0), 1 - several.mean(axis=0))))


def test_what_weighs_nothing_in_the_loss_counts_nothing_in_the_score():
    tokens = np.where(np.arange(8) < 2, RNG.integers(1, 4, size=(100, 8)), 0)
    weights = (tokens > 0).astype("float32")
    feed, _ = read_feed(X, tokens, sample_weight=weights, batch_size=32, validation_data=(X, tokens, weights))
    words = task_of(feed, replace(SETUP, units=5, loss="sparse_categorical_crossentropy", head="softmax"))
    assert words.baseline_score < 0.5
    perfect = np.eye(5)[np.where(tokens > 0, tokens, 4)]
    assert words.score(Fixed(perfect), SETUP).value == 1.0
    rows = replace(words, y=tokens[:, 0], counts=np.arange(100) < 50)
    wrong = np.eye(5)[np.where(np.arange(100) < 50, tokens[:, 0], 0)]
    assert rows.score(Fixed(wrong), SETUP).value == pytest.approx(1.0)


def test_constant_columns_do_not_decide_the_score():
    y = np.column_stack([X[:, 0], np.zeros(100)])
    assert task(y, units=2).score(Fixed(y + 0.01), SETUP).value > 0.99


def test_predictions_that_are_not_finite_score_worst():
    assert task(X[:, 0]).score(Fixed(np.full((100, 1), np.nan)), SETUP).value == -1.0
    assert task(LABELS, units=3).score(Fixed(np.full((100, 3), np.nan)), SETUP).value == 0.0


def test_a_loss_that_does_not_fit_is_replaced():
    logits = {"units": 3, "loss": "sparse_categorical_crossentropy", "head": "linear", "from_logits": False}
    changed = fitted(task(LABELS, **logits), replace(SETUP, **logits))
    assert (changed.head, changed.from_logits) == ("linear", True)
    bounded = fitted(task(X[:, 0] * 50, head="sigmoid"), replace(SETUP, head="sigmoid"))
    assert (bounded.head, bounded.loss) == ("linear", "mse")
    crossentropy = {"head": "sigmoid", "loss": "binary_crossentropy", "from_logits": False}
    signed = fitted(task(np.tanh(X[:, 0]), **crossentropy), replace(SETUP, **crossentropy))
    assert (signed.head, signed.loss) == ("linear", "mse")
    percentage = {"loss": "mean_absolute_percentage_error"}
    assert fitted(task(X[:, 0], **percentage), replace(SETUP, **percentage)).loss == "mae"
    few = {"units": 2, "loss": "sparse_categorical_crossentropy", "head": "softmax", "from_logits": False}
    assert fitted(task(LABELS, **few), replace(SETUP, **few)).units == 3


@pytest.mark.parametrize(
    ("y", "settings"),
    [
        (LABELS, {"units": 3, "loss": "sparse_categorical_crossentropy", "head": "linear", "from_logits": True}),
        (LABELS, {"units": 3, "loss": "sparse_categorical_crossentropy", "head": "softmax", "from_logits": False}),
        (LABELS % 2, {"head": "sigmoid", "loss": "binary_crossentropy", "from_logits": False}),
        (X[:, 0], {"loss": "mae"}),
        (np.abs(np.tanh(X[:, 0])), {"head": "sigmoid", "loss": "binary_crossentropy", "from_logits": False}),
    ],
)
def test_a_loss_that_fits_is_left_alone(y, settings):
    assert fitted(task(y, **settings), replace(SETUP, **settings)) is None


@pytest.mark.parametrize(
    ("loss", "score"), [(-2.0, 2.0), (1.0, 0.5), (2.0, 0.0), (30.0, -0.71), (100.0, -1.0), (1e9, -1.0)]
)
def test_a_loss_of_the_users_own_is_above_zero_only_below_that_of_a_constant_prediction(loss, score):
    own = replace(task(X, units=7), reference=2.0, start=100.0)
    assert own.score(Evaluated(loss), SETUP).value == pytest.approx(score, abs=0.02)


def test_losses_of_the_users_own_are_told_apart_by_a_tenth_of_what_is_left():
    own = replace(task(X, units=7), reference=8.0)
    lab = Lab(SETUP, None, own, None, None, 100, None)

    def score(loss, error=1e-3):
        return Score(own.score(Evaluated(loss), SETUP).value, error=error)

    assert lab.better(score(0.03), score(0.06))
    assert not lab.better(score(0.058), score(0.06))
    assert not lab.better(score(0.03, error=0.01), score(0.06, error=0.01))


class Evaluated:
    """A model whose loss is known."""

    def __init__(self, loss):
        self.loss = loss

    def evaluate(self, *arguments, **keywords):
        return {"loss": self.loss}


def test_a_model_can_be_scored_itself():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert -1.0 <= task(X[:, 0]).score(model, SETUP).value <= 1.0


def test_few_rows_of_data_without_targets():
    feed, _ = read_feed(X, None, batch_size=32, validation_data=(X, None))
    x, y = feed.few_rows()
    assert (len(x), y) == (100, None)


@pytest.mark.parametrize("values", [(0, 255), (-1, 1), (1, 2)])
def test_two_values_are_marks_that_a_binary_loss_wants_as_0_and_1(values):
    y = np.array(values, "float32")[np.arange(40) % 2][:, None]
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    feed, _ = read_feed(np.ones((40, 2), "float32"), y, batch_size=10)
    base = Setup(batch_size=10, epochs=1, loss="binary_crossentropy", head="sigmoid", units=1)
    task = task_of(feed, base)
    scaling = scaling_of(feed.x, feed.y, (False,))
    changed = catalogue(base, read_original(model), scaling, task, steps=10)["zero_one"].apply(base)
    batch = _Steps(feed, changed, 0, 0, 1)[0]
    assert task.kind == BINARY and set(batch[1].ravel()) == {0.0, 1.0}
    assert task.score(Fixed(is_marked(task.y) * 0.4 + 0.3), changed).value == 1.0
    assert "y == y.max()" in code_of(base, changed)
