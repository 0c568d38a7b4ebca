from dataclasses import replace

import keras
import pytest

from gradrecipes.rescue.edits import OWN
from gradrecipes.rescue.original import Difference, Setup, setup_of


def compiled(optimizer, **layers):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def test_a_setup_names_what_differs():
    setup = Setup(batch_size=32, epochs=5, optimizer="SGD", learning_rate=0.1)
    changed = replace(setup, guard=True, inputs="standardized")
    assert setup.diff(changed) == (Difference("guard", False, True), Difference("inputs", OWN, "standardized"))
    assert setup.diff(setup) == ()


def test_a_setup_reads_the_optimizer():
    setup = setup_of(compiled(keras.optimizers.SGD(0.5, momentum=0.9, clipnorm=2.0)), None, batch_size=8, epochs=3)
    assert (setup.optimizer, setup.learning_rate, setup.settings["momentum"]) == ("SGD", 0.5, 0.9)
    assert setup.clipping == ("clipnorm", "2.0")


def test_a_setup_reads_a_schedule_and_a_loss_scaler():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(schedule))
    setup = setup_of(compiled(optimizer), None, batch_size=8, epochs=3)
    assert (setup.optimizer, setup.learning_rate, setup.schedule) == ("Adam", None, "ExponentialDecay")


def test_an_optimizer_of_the_users_own_is_left_alone():
    class Mine(keras.optimizers.SGD):
        pass

    assert setup_of(compiled(Mine(0.1)), None, batch_size=8, epochs=3).optimizer == OWN


def test_a_setup_is_json_and_back():
    setup = Setup(batch_size=32, epochs=5, optimizer="Adam", settings={"beta_1": 0.9}, clipping=("clipnorm", "1.0"))
    assert Setup.from_json(setup.to_json()) == setup


@pytest.mark.parametrize("setting", ["batch_size", "epochs"])
def test_the_size_of_a_training_is_required(setting):
    with pytest.raises(TypeError):
        Setup(**{setting: 1})
