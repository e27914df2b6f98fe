"""Orders to an engine, and what the loader refuses before it looks at a model; without SGLang."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tranship.runtime.frameworks.sglang.control import (
    Bind,
    Close,
    CommittedFile,
    Meeting,
    NamedTensors,
    Update,
    named_tensors,
    read_order,
)
from tranship.runtime.frameworks.sglang.loader import receive
from tranship.schema.diagnostics import DiagnosticError

FILE = CommittedFile(path="/plan.json", digest="sha256:" + "0" * 64)
BIND = Bind(
    action="bind",
    plan=FILE,
    manifest=FILE,
    meeting=Meeting(host="trainer", port=1234, name="run", transport="nccl", timeout=60.0),
    first_rank=0,
)


@pytest.mark.parametrize("order", [BIND, Update(action="update", version=7), Close(action="close")])
def test_an_order_is_read_as_it_was_made(order: Bind | Update | Close) -> None:
    ((name, tensor),) = made = named_tensors(order)
    assert (name, tensor.dtype, tensor.dim()) == ("tranship", torch.uint8, 1)
    assert read_order(made) == order


def text(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([], "TS870"),
        ([("tranship", text(b"{}")), ("tranship", text(b"{}"))], "TS870"),
        ([("tranship", text(b"{}").view(1, 2))], "TS870"),
        ([("tranship", text(b"{}").int())], "TS870"),
        ([("tranship", text(b"\xff"))], "TS870"),
        ([("tranship", text(b"[1, 2"))], "TS102"),
        ([("tranship", text(b"{}"))], "TS111"),
    ],
)
def test_what_is_no_order_is_refused(given: NamedTensors, code: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        read_order(given)
    assert caught.value.diagnostics[0].code == code
    assert caught.value.diagnostics[0].at is not None
    assert caught.value.diagnostics[0].at.file == "control data"


def test_pipeline_stages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = SimpleNamespace(pp_size=2, tp_rank=0)
    context = SimpleNamespace(get_parallel=lambda: parallel)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    with pytest.raises(DiagnosticError, match="TS874"):
        receive(nn.Linear(1, 1), named_tensors(BIND))


def test_closing_what_is_not_bound_does_nothing() -> None:
    receive(nn.Linear(1, 1), named_tensors(Close(action="close")))
