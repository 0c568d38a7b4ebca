import keras
import numpy as np
import pytest

from gradrecipes.rescue.feed import read_feed
from gradrecipes.rescue.own_loss import OwnLoss, constant_loss, positive_columns, wants_other_answers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 5)).astype("float32")
Y = X @ np.array([1.0, -2.0, 0.5, 1.5, -1.0], "float32")
COUNTS = np.minimum(RNG.poisson(np.exp(3.5 + 0.4 * Y)), 400).astype("float32")[:, None]
LABELS = (Y > 0).astype("float32")[:, None]


def compiled(loss, units=1):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(units)])
    model.compile("sgd", loss)
    return model


def by_rate(y, rate):
    return keras.ops.mean(rate - y * keras.ops.log(rate), axis=-1)


def by_logarithm(y, logarithm):
    return keras.ops.mean(keras.ops.exp(logarithm) - y * logarithm, axis=-1)


def by_hazard(y, hazard):
    return keras.ops.mean(y * hazard - keras.ops.log(hazard), axis=-1)


def unsafe(y, shares):
    return -keras.ops.mean(y * keras.ops.log(shares) + (1.0 - y) * keras.ops.log(1.0 - shares), axis=-1)


def of_logits(y, logits):
    return keras.ops.mean(keras.ops.softplus(logits) - y * logits, axis=-1)


def test_a_loss_of_the_users_own_is_measured_from_the_best_constant_prediction():
    def likelihood(y, predicted):  # of a normal distribution whose logarithm of the variance is the second entry
        square = keras.ops.square(y - predicted[:, :1])
        return keras.ops.mean(0.5 * predicted[:, 1:] + 0.5 * square / keras.ops.exp(predicted[:, 1:]))

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile("sgd", likelihood)
    y = 30.0 + 5.0 * Y[:, None]
    feed, _ = read_feed(X, y, batch_size=32, validation_data=(X, y))
    assert constant_loss(model, feed.x_val, feed.y_val, (2,)) == pytest.approx(0.5 * np.log(y.var()) + 0.5, rel=1e-3)


@pytest.mark.parametrize("contrastive", [True, False])
def test_a_loss_that_wants_small_distances_of_what_is_marked_1_is_no_measure_of_answers(contrastive):
    def loss(y, predicted):
        same, other = (y, 1.0 - y) if contrastive else (1.0 - y, y)
        return keras.ops.mean(same * predicted**2 + other * keras.ops.maximum(1.0 - predicted, 0.0) ** 2)

    marks = (Y > 0).astype("float32")[:, None]
    assert wants_other_answers(compiled(loss), X, marks, (1,), numbers=False) is contrastive


def test_a_likelihood_of_what_the_answers_are_parameters_of_is_told_where_it_is_finite():
    waits = RNG.weibull(1.3, size=(300, 1)).astype("float32") * 20 * (RNG.uniform(size=(300, 1)) > 0.1)
    y = np.concatenate([waits, np.ones_like(waits)], axis=1)

    def weibull(y, predicted):
        shape, ratio = keras.ops.softplus(predicted[:, 1]), y[:, 0] / keras.ops.exp(predicted[:, 0])
        return ratio**shape - y[:, 1] * (keras.ops.log(shape) + shape * keras.ops.log(ratio))

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    for loss, other in ((weibull, True), (lambda y, predicted: keras.ops.abs(y - predicted), False)):
        model.compile("sgd", loss)
        assert wants_other_answers(model, X, y, (2,)) is other


def test_a_constant_prediction_of_targets_that_never_vary_says_nothing():
    assert constant_loss(compiled("mse"), X, np.ones((300, 1), "float32"), (1,)) is None


@pytest.mark.parametrize(
    ("loss", "other"),
    [(by_rate, False), ("mse", False), ("mape", False), ("poisson", False), (by_logarithm, True), (by_hazard, True)],
)
def test_a_parameter_of_a_distribution_is_told_from_a_prediction(loss, other):
    assert wants_other_answers(compiled(loss), X, COUNTS, (1,)) is other


@pytest.mark.parametrize("loss", [unsafe, of_logits])
def test_shares_and_logits_of_marks_are_predictions_of_them(loss):
    assert wants_other_answers(compiled(loss), X, LABELS, (1,), numbers=False) is False


def test_the_best_constant_of_a_rate_is_found_above_0():
    least = 1.0 + np.log(COUNTS.mean())
    assert constant_loss(compiled(by_hazard), X, COUNTS, (1,)) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "predicted", "accepted"),
    [
        (by_rate, np.exp(3.5 + 0.4 * Y), True),
        (by_rate, 40.0 + 20.0 * Y, False),  # as of a squared error: some are below 0, where no rate is
        (by_logarithm, np.exp(3.5 + 0.4 * Y), False),
        (by_logarithm, 3.5 + 0.4 * Y, True),
        ("mse", np.full(300, COUNTS.mean()), False),  # a constant
    ],
)
def test_answers_for_another_loss_have_to_be_better_than_a_constant_by_the_own_one(loss, predicted, accepted):
    own = OwnLoss(("own", None), lambda: compiled(loss), X, COUNTS, (1,))
    assert own.accepts(predicted[:, None].astype("float32"), from_logits=False) is accepted


@pytest.mark.parametrize("loss", [unsafe, of_logits])
@pytest.mark.parametrize("informed", [True, False])
def test_sure_answers_are_accepted_by_a_loss_that_is_not_finite_there(loss, informed):
    own = OwnLoss(("own", None), lambda: compiled(loss), X, LABELS, (1,), LABELS.mean(axis=0))
    logits = 200.0 * (2.0 * LABELS - 1.0) if informed else np.zeros_like(LABELS)
    assert own.accepts(logits, from_logits=True) is informed
    if loss is unsafe:
        assert own.accepts(LABELS if informed else np.full_like(LABELS, 0.5), from_logits=False) is informed


@pytest.mark.parametrize(("rectified", "columns"), [(False, (0,)), (True, (0,))])
def test_what_must_be_positive_is_found_below_0_or_at_it(rectified, columns):
    assert positive_columns(compiled(by_rate), X, COUNTS, (1,), rectified=rectified) == columns
    assert positive_columns(compiled("mse"), X, COUNTS, (1,), rectified=rectified) == ()
