"""The benchmarks' own parts, as far as a CPU runs them: cases, memory, checks and peers' ways."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tranship.compiler.verify import digests_of, verify
from tranship.runtime.execute import simulate
from tranship.runtime.quantization import quantize
from tranship.schema.check import check_manifest
from tranship.schema.expand import expand
from tranship.schema.transfer import Options

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
shapes: Any = import_module("shapes")
measure: Any = import_module("measure")
peer_parts: Any = import_module("peer_parts")
peer_styles: Any = import_module("peer_styles")
peers: Any = import_module("peers")

CASES = ("qwen3-8b", "qwen3-8b-linears", "qwen3-30b-experts", "kimi-k2-experts")
STAGING = 1 << 26


@pytest.fixture
def short_block(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random weights repeat after fewer elements than the largest of them has."""
    monkeypatch.setattr(shapes, "RANDOM_ELEMENTS", 1_299_709)
    shapes.forget_random()
    yield
    shapes.forget_random()


def tiny(precision: str, **options: int) -> Any:
    """Two experts of one layer: six weights of 768 x 2048."""
    return shapes.case(
        "qwen3-30b-experts", precision=precision, layers=1, experts=2, staging_bytes=1 << 22,
        **options,
    )  # fmt: skip


def exact(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the Triton kernel computes, for CPUs."""
    return quantize(
        weight,
        (128, 128),
        formula="divide",
        code_dtype=torch.float8_e4m3fn,
        scale_dtype=torch.float32,
    )


# --- Cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_case_is_proved(name: str, precision: str, ranks: int) -> None:
    case = shapes.case(
        name, precision=precision, layers=2, staging_bytes=STAGING,
        sender_ranks=ranks, receiver_ranks=ranks,
    )  # fmt: skip
    assert check_manifest(case.sender) == check_manifest(case.receiver) == ()
    options = Options(staging_bytes=STAGING)
    digests = digests_of(case.sender, case.receiver, None, None, options)
    found = verify(case.plan, case.sender, case.receiver, digests=digests, options=options)
    assert found == ()


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("qwen3-8b", 399),
        ("qwen3-8b-linears", 252),
        ("qwen3-30b-experts", 9216),
        ("kimi-k2-experts", 288),
    ],
)
def test_a_case_has_the_model_s_tensors(name: str, tensors: int) -> None:
    assert len(expand(shapes.case(name).receiver, [0]).tensors) == tensors


def test_a_buffer_cannot_be_cut_in_two() -> None:
    receiver = shapes.case("qwen3-8b", layers=1).receiver
    with pytest.raises(ValueError, match="only some are wanted"):
        shapes.cut(receiver, lambda name: "q_proj" in name)  # pyright: ignore[reportUnknownLambdaType]


# --- Memory ---------------------------------------------------------------------------------------


def test_poison_fills_every_byte_of_buffers_as_declared() -> None:
    case = tiny("fp8")
    tensors = shapes.allocate(case.receiver, 0, "cpu", fill="poison")
    for record in expand(case.receiver, [0]).buffers:
        assert tensors[record.name].stride() == record.strides
        assert (shapes.storage_bytes(tensors[record.name]) == 0xA5).all()


@pytest.mark.usefixtures("short_block")
def test_tiles_of_random_weights_differ() -> None:
    names = [f"layers.{n}.weight" for n in range(3)]
    tiles: list[Tensor] = []
    for name in names:
        values = shapes.logical_values(name, (768, 2048), "cpu")
        tiles += values.view(6, 128, 16, 128).permute(0, 2, 1, 3).reshape(-1, 128 * 128).unbind()
    assert len({tile.view(torch.int16).numpy().tobytes() for tile in tiles}) == 3 * 96
    assert abs(float(torch.cat(tiles).float().std()) - 0.02) < 0.001


@pytest.mark.usefixtures("short_block")
def test_random_values_of_quantized_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="is quantized"):
        shapes.allocate(tiny("fp8").receiver, 0, "cpu", fill="random")


def moved(case: Any) -> dict[str, Tensor]:
    """What a receiver of one rank holds after the plan ran, by the checkpoint's names."""
    ranks = range(case.sender.world_size)
    senders = {rank: shapes.allocate(case.sender, rank, "cpu", fill="random") for rank in ranks}
    receiver = shapes.allocate(case.receiver, 0, "cpu", fill="poison")
    simulate(case.plan, senders, {0: receiver}, {})
    return shapes.checkpoint_views(case.receiver, 0, receiver)


@pytest.mark.usefixtures("short_block")
def test_what_senders_hold_in_parts_arrives_as_the_logical_values() -> None:
    views = moved(tiny("fp8", sender_ranks=2))
    assert len(views) == 12
    for name, shape in peers.tensor_shapes(tiny("fp8")).items():
        values = shapes.logical_values(name, shape, "cpu")
        codes, scales = exact(values)
        assert torch.equal(views[name].view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(views[f"{name}_scale_inv"], scales)


@pytest.mark.usefixtures("short_block")
def test_wrong_bytes_are_found() -> None:
    case = tiny("fp8")
    views, known = moved(case), peers.tensor_shapes(case)
    peers.check(known, views)
    name = next(iter(views))
    codes = views[name].view(torch.uint8)
    code = int(codes[5, 7])
    codes[5, 7] = code - 1 if code & 0x7F else code + 1
    peers.check(known, views)
    codes[5, 7] = code ^ 0x20
    with pytest.raises(peers.WrongBytes, match="apart"):
        peers.check(known, views)
    codes[5, 7] = code
    views[f"{name}_scale_inv"][2, 3] *= 1.0000002
    with pytest.raises(peers.WrongBytes, match="1 scales of"):
        peers.check(known, views)


# --- Measuring ------------------------------------------------------------------------------------


def test_a_rate_beyond_the_ceiling_is_an_error() -> None:
    assert measure.fraction(3e9, 1.5, 2000) == pytest.approx(1.0)
    assert measure.fraction(3.2e9, 1.5, 2000) == pytest.approx(1.0667, abs=1e-4)
    with pytest.raises(measure.ImpossibleRate, match=r"1\.10 of a ceiling of 2,000 GB/s"):
        measure.fraction(3.3e9, 1.5, 2000)
    with pytest.raises(measure.ImpossibleRate):
        measure.fraction(3.2e9, 1.5, 2000, most=1.05)
    with pytest.raises(measure.ImpossibleRate):
        measure.fraction(1, 0.0, 2000)


def test_a_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    table = measure.Table(("way", "ms"))
    table.head()
    table.row("a|b", "1.0")
    assert capsys.readouterr().out == "| way | ms |\n| --- | --- |\n| a\\|b | 1.0 |\n"
    with pytest.raises(ValueError, match="1 cells, but 2 columns"):
        table.row("a")


def test_the_setup_is_a_list() -> None:
    assert all(line.startswith("- ") for line in measure.setup_lines())


# --- Peers' ways ----------------------------------------------------------------------------------


def some_parts() -> list[tuple[str, Tensor]]:
    """Three weights with scales and one without, of 300, 500, 700 and 100 codes."""
    parts: list[tuple[str, Tensor]] = []
    for number, count in enumerate((300, 500, 700)):
        codes = torch.randint(0, 120, (count // 100, 100), dtype=torch.uint8)
        parts.append((f"{number}.weight", codes.view(torch.float8_e4m3fn)))
        parts.append((f"{number}.weight_scale_inv", torch.rand(3, 2)))
    return [*parts, ("norm.weight", torch.rand(50).bfloat16())]


def same(left: Tensor, right: Tensor) -> bool:
    """Whether dtype, shape and bytes are equal."""
    equal = torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    return equal and left.dtype == right.dtype and left.shape == right.shape


def test_buckets_hold_whole_weights_with_their_scales() -> None:
    parts = some_parts()
    buckets = peer_styles.concatenate(parts, bucket_bytes=860)
    assert [bucket.flat.nbytes for bucket in buckets] == [324 + 524, 724 + 100]
    found = [part for bucket in buckets for part in bucket.parts()]
    assert [name for name, _ in found] == [name for name, _ in parts]
    assert all(same(left, right) for (_, left), (_, right) in zip(found, parts, strict=True))


@pytest.mark.parametrize("title", ["handle per tensor", "bucket, one handle"])
def test_weights_arrive_by_handles(title: str) -> None:
    parts, style = some_parts(), peer_styles.COLOCATED[title]
    parameters = {name: torch.zeros_like(tensor) for name, tensor in parts}
    mine, theirs = Pipe()
    receiver = threading.Thread(
        target=peer_styles.colocated_receiver,
        args=(style, parameters, theirs),
        kwargs={"repeat": 2},
        daemon=True,
    )
    receiver.start()
    ms = peer_styles.colocated_sender(
        style, parts, mine, prepare=peer_styles.plain, repeat=2, bucket_bytes=860
    )
    receiver.join(timeout=60)
    assert not receiver.is_alive()
    assert 0 < ms < 60_000
    assert all(same(parameters[name], tensor) for name, tensor in parts)


@pytest.mark.usefixtures("short_block")
@pytest.mark.parametrize("title", ["handle per tensor", "bucket, one handle"])
def test_quantized_weights_arrive_in_fused_parameters(
    title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_parts, "quantize_one", exact)
    case, style, device = tiny("fp8"), peer_styles.COLOCATED[title], torch.device("cpu")
    weights, (_, parameters) = peers.trainer(case, device), peers.engine(case, device)
    mine, theirs = Pipe()
    receiver = threading.Thread(
        target=peer_styles.colocated_receiver,
        args=(style, dict(parameters), theirs),
        kwargs={"repeat": 1},
        daemon=True,
    )
    receiver.start()
    prepare = peers.preparation(case)
    peer_styles.colocated_sender(
        style, weights, mine, prepare=prepare, repeat=1, bucket_bytes=1 << 22
    )
    receiver.join(timeout=60)
    assert len(parameters) == 12
    for name, weight in weights:
        codes, scales = exact(weight)
        assert same(dict(parameters)[name], codes)
        assert same(dict(parameters)[f"{name}_scale_inv"], scales)


def test_weights_arrive_between_processes(capfd: pytest.CaptureFixture[str]) -> None:
    options = {"precision": "bf16", "layers": 1, "experts": 2}
    peers.run_network("qwen3-30b-experts", options, "cpu", 1)
    rows = [
        line.split(" | ")[0] for line in capfd.readouterr().out.splitlines() if "not at" in line
    ]
    assert rows == [f"| {title}" for title in peer_styles.NETWORK]


INTERPRETED = """
    import sys
    sys.path.insert(0, "benchmarks")
    import torch
    from peer_parts import bytes_quantized, quantized_parts
    for shape in ((256, 384), (200, 144), (1, 128)):
        weight = ("a_proj.weight", (torch.randn(shape) * 0.02).bfloat16())
        (_, codes), (name, scales) = quantized_parts([weight])
        rows, columns = -(-shape[0] // 128), -(-shape[1] // 128)
        padded = torch.zeros(rows * 128, columns * 128)
        padded[: shape[0], : shape[1]] = weight[1].float().abs()
        amax = padded.view(rows, 128, columns, 128).amax(dim=(1, 3))
        torch.testing.assert_close(scales, amax / 448, rtol=2e-7, atol=0)
        assert name == "a_proj.weight_scale_inv" and codes.shape == shape
        assert bytes_quantized(weight) == codes.nbytes + scales.nbytes
"""


def test_the_quantize_loop_makes_the_right_scales() -> None:
    # Triton reads the variable when it is imported, so that this takes a process of its own. Its
    # interpreter does not convert to FP8 as GPUs do: codes are checked where a GPU is.
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERPRETED)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
