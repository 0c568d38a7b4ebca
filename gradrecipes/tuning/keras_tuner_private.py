"""The names of keras-tuner that are not public; a test fails loudly when a release moves them."""

from __future__ import annotations

from typing import Any

import grpc
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.hyperparameters import Float
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_chief
from keras_tuner.src.distribute.utils import has_chief_oracle, is_chief_oracle
from keras_tuner.src.engine.objective import DefaultObjective

__all__ = [
    "BaseTuner",
    "DefaultObjective",
    "Float",
    "Trial",
    "TrialStatus",
    "has_chief_oracle",
    "is_chief_oracle",
    "start_oracle_server",
]


def start_oracle_server(oracle: keras_tuner.Oracle, address: str) -> grpc.Server:
    """Start to answer the workers of a search, one question at a time, and return the server.

    Raises:
        RuntimeError: The address is in use or not this machine's.
    """
    from concurrent import futures

    server: Any = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    protos.get_service_grpc().add_OracleServicer_to_server(oracle_chief.OracleServicer(oracle), server)
    if not server.add_insecure_port(address):
        raise RuntimeError(f"The chief cannot listen at {address}: the port is taken, or the address is another's.")
    server.start()
    return server
