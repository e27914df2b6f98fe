"""Make tranship a weight-transfer backend of vLLM: `WeightTransferConfig(backend="tranship")`.

An entry point of the group `vllm.general_plugins`, which vLLM loads in every process.
"""

import importlib
from typing import Any

BACKEND = "tranship"


def register() -> None:
    """Register the engine by name; it is imported when a worker wants it. Repeating is harmless."""
    module: Any = importlib.import_module("vllm.distributed.weight_transfer.factory")
    factory = module.WeightTransferEngineFactory
    if BACKEND not in factory._registry:
        engine = "tranship.runtime.frameworks.vllm.engine"
        factory.register_engine(BACKEND, engine, "TranshipWeightTransferEngine")
