"""How compile time, memory and file sizes grow with the number of ranks: Kimi-K2, both sides.

Every case is a fresh process of `tranship compile`: start-up, reading and checking both manifests,
all passes, all proofs and writing the plan. Prints a Markdown table; times are CPU seconds.

    python benchmarks/compile_scaling.py [--repeat 3] [--most 1024]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "examples" / "kimi-k2" / "config.json"
EXPERTS_OVER = 128
"""Most ranks of one engine: 384 experts do not divide further by powers of two."""


@dataclass(frozen=True)
class Measured:
    """One case: ranks, CPU seconds (least of all repeats), peak memory in MB, bytes of files."""

    sender: int
    receiver: int
    seconds: float
    memory: float
    manifests: int
    plan: int
    moves: str


def trainer(ranks: int) -> dict[str, int]:
    """Megatron: 16 stages, tensor parallel 4 or 8, experts over all ranks of a stage up to 128."""
    return {
        "world_size": ranks,
        "tensor_model_parallel_size": min(8, ranks // 16),
        "pipeline_model_parallel_size": 16,
        "expert_model_parallel_size": min(ranks // 16, EXPERTS_OVER),
        "expert_tensor_parallel_size": 1,
        "num_layers_in_first_pipeline_stage": 4,
        "num_layers_in_last_pipeline_stage": 1,
    }


def engine(ranks: int) -> dict[str, int | str]:
    """SGLang: engines of up to 128 ranks with attention data parallelism, as many as fit."""
    own = min(ranks, EXPERTS_OVER)
    return {
        "tp_size": own,
        "ep_size": own,
        "dp_size": own,
        "enable_dp_attention": "true",
        "moe_dense_tp_size": 1,
        "moe_a2a_backend": "deepep",
        "replicas": ranks // own,
    }


def declare(layout: str, options: dict[str, int] | dict[str, int | str], path: Path) -> int:
    """Write a manifest; return its size in bytes."""
    arguments = ["-a", "deepseek_v3", "-c", str(CONFIG), "-l", layout, "-o", str(path)]
    for name, value in options.items():
        arguments += ["--option", f"{name}={value}"]
    if layout == "sglang":
        arguments += ["--quantization", "fp8-block128"]
    subprocess.run(
        [sys.executable, "-m", "tranship", "manifest", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path.stat().st_size


def compiled(transfer: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes of one `tranship compile`."""
    command = [sys.executable, "-m", "tranship", "compile", str(transfer)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def measure(sender: int, repeat: int, folder: Path) -> Measured:
    """Declare and compile one case."""
    receiver = sender // 2
    manifests = declare("megatron", trainer(sender), folder / "trainer.json")
    manifests += declare("sglang", engine(receiver), folder / "engine.json")
    transfer = folder / "x.transfer.toml"
    transfer.write_text(
        'format = "tranship.transfer/1"\nsender = "trainer.json"\nreceiver = "engine.json"\n'
    )
    runs = [compiled(transfer) for _ in range(repeat)]
    shown = subprocess.run(
        [sys.executable, "-m", "tranship", "compile", "--check", str(transfer)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    moves = next(line for line in shown.splitlines() if " moves" in line).split(" in ")[1]
    return Measured(
        sender,
        receiver,
        min(seconds for seconds, _ in runs),
        max(memory for _, memory in runs),
        manifests,
        (folder / "x.plan.json").stat().st_size,
        moves.removesuffix(" moves"),
    )


def main() -> None:
    """Measure all cases up to a number of trainer ranks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--most", type=int, default=4096)
    given = parser.parse_args()
    print("| ranks | moves | CPU s | peak MB | both manifests, KB | plan, KB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (64, 128, 256, 512, 1024, 2048, 4096):
            if ranks <= given.most:
                row = measure(ranks, given.repeat, Path(folder))
                print(
                    f"| {row.sender} -> {row.receiver} | {row.moves} | {row.seconds:.2f} "
                    f"| {row.memory:.0f} | {row.manifests / 1000:.1f} | {row.plan / 1000:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
