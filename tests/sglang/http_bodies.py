"""Check bodies of requests with SGLang's own classes, and print the orders that they carry.

    python tests/sglang/http_bodies.py < BODIES

Standard input is a JSON list of pairs: an endpoint, and the body that was sent to it.
"""

import base64
import importlib
import json
import sys
from typing import Any

from pydantic import TypeAdapter

from tranship.runtime.frameworks.sglang.boot import STAND_INS
from tranship.runtime.frameworks.sglang.control import read_order
from tranship.runtime.frameworks.tracing.stand_ins import install

CLASSES = {
    "pause_generation": "PauseGenerationReqInput",
    "begin_weight_update": "BeginWeightUpdateReqInput",
    "update_weights_from_tensor": "UpdateWeightsFromTensorReqInput",
    "end_weight_update": "EndWeightUpdateReqInput",
    "continue_generation": "ContinueGenerationReqInput",
}


def main() -> None:
    """Run as a script."""
    install(STAND_INS)
    classes: Any = importlib.import_module("sglang.srt.managers.io_struct")
    common: Any = importlib.import_module("sglang.srt.utils.common")
    common.pybase64 = base64  # the package that it decodes with need not be there
    for endpoint, body in json.load(sys.stdin):
        kind = getattr(classes, CLASSES[endpoint])
        unknown = set(body) - set(kind.__struct_fields__)
        assert not unknown, (endpoint, unknown)
        # FastAPI, which SGLang's server is made with, reads bodies in this way.
        read: Any = TypeAdapter(kind).validate_python(body)
        assert isinstance(read, kind)
        if endpoint == "update_weights_from_tensor":
            payloads = common.normalize_serialized_named_tensor_payloads(
                read.serialized_named_tensors
            )
            for payload in payloads:
                order = read_order(common.MultiprocessingSerializer.deserialize(payload))
                print(order.model_dump_json())


if __name__ == "__main__":
    main()
