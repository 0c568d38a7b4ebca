"""What is used of keras-tuner beside its public names is still there, and works as it did."""

from __future__ import annotations

import inspect

import keras_tuner
import pytest

from gradrecipes.tuning import keras_tuner_private
from gradrecipes.tuning.launcher import free_port
from gradrecipes.tuning.oracles import RandomSearchOracle


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (keras_tuner.Oracle(), ("_retry_queue", "ongoing_trials", "tuner_ids", "end_order", "start_order", "trials")),
        (keras_tuner.Oracle, ("_save_trial", "_random_values", "_duplicate", "_set_project_dir")),
        (keras_tuner.oracles.GridSearchOracle(), ("_ordered_ids", "_populate_next", "_compare")),
        (
            keras_tuner.oracles.BayesianOptimizationOracle,
            ("_nonfixed_space", "_vector_to_values", "_random_populate_space"),
        ),
        (keras_tuner.Tuner, ("_build_and_fit_model", "_is_worker", "project_dir", "get_trial_dir")),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_the_names_are_there(owner, names):
    assert [name for name in names if not hasattr(owner, name)] == []


def test_a_search_still_asks_in_the_order_that_is_relied_on():
    source = inspect.getsource(keras_tuner_private.BaseTuner.search)
    calls = ["pre_create_trial", "create_trial", "on_trial_begin", "_try_run_and_update_trial", "on_trial_end"]
    places = [source.index(f".{call}(") for call in calls]
    assert places == sorted(places)
    assert "consecutive_failures == self.max_consecutive_failed_trials" in inspect.getsource(
        keras_tuner.Oracle._check_consecutive_failures
    )  # so that None means never


def test_the_server_answers_and_refuses_a_port_that_is_taken(tmp_path, monkeypatch):
    from keras_tuner.src.distribute.oracle_client import OracleClient

    oracle = RandomSearchOracle(keras_tuner.Objective("score", "min"), max_trials=1)
    oracle.hyperparameters.Float("rate", 0.0, 1.0)
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    port = str(free_port())
    server = keras_tuner_private.start_oracle_server(oracle, f"127.0.0.1:{port}")
    try:
        for name, value in (("IP", "127.0.0.1"), ("PORT", port)):
            monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", value)
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-0")
        client = OracleClient(oracle)
        trial = client.create_trial("worker-0")
        client.update_trial(trial.trial_id, {"heartbeat/worker-0": 1.0})
        client.update_trial(trial.trial_id, {"score": 0.25})
        trial.status = "COMPLETED"
        client.end_trial(trial)
        assert client.create_trial("worker-0").status == "STOPPED" and oracle.told_to_stop
        assert oracle.trials[trial.trial_id].score == 0.25
        with pytest.raises(RuntimeError):
            keras_tuner_private.start_oracle_server(oracle, f"127.0.0.1:{port}")
    finally:
        server.stop(0).wait()
