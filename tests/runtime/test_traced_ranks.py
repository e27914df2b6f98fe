"""What a rank answers whose engine fails."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tranship.runtime.frameworks.tracing.ranks import Code, answer
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.dtypes import DType


class Model(nn.Module):
    """Holds a weight, and fails to load it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4, device="meta"))

    def load_weights(self, weights: object) -> None:
        del weights
        raise ValueError("no such expert")


def built(request: TraceRequest, rank: int) -> Model:
    del request, rank
    return Model()


def unbuilt(request: TraceRequest, rank: int) -> Model:
    raise ValueError(f"rank {rank} of {request.tp} has no heads")


def code(build: Callable[[TraceRequest, int], Model]) -> Code:
    def prepare(request: TraceRequest) -> None:
        del request

    return Code(
        title="Engine",
        package="tranship",
        module="",
        prepare=prepare,
        build=build,
        axes=lambda request: (),
        options=lambda request: {},
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (built, "Engine does not load the checkpoint: ValueError: no such expert"),
        (unbuilt, "Engine does not build the model: ValueError: rank 1 of 2 has no heads"),
    ],
)
def test_what_an_engine_says_when_it_fails_is_told(
    tmp_path: Path, build: Callable[[TraceRequest, int], Model], message: str
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Model"]}')
    request = TraceRequest(
        folder=tmp_path,
        tp=2,
        ep=1,
        ranks=(1,),
        arguments={},
        sources={"weight": (DType.F32, (4, 4))},
        output=tmp_path,
    )
    found = answer(code(build), request, 1)
    assert found.manifest is None
    (finding,) = found.findings
    assert (finding.code, finding.file) == ("TS856", "receiver rank 1")
    assert finding.message.startswith(message)
    assert "test_traced_ranks.py:" in finding.message
