"""Megatron-core on two ranks updates a real SGLang model in FP8 on two ranks, on a CPU."""

import sys
from pathlib import Path

# Examples are not installed with tranship.
sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.live.deployment import Deployment, run


def describe_whole(deployment: Deployment) -> None:
    """Write what the model is on one rank, which the trainer's declarations refer to."""
    print("   What the whole model is, on one rank, follows from config.json", flush=True)
    deployment.command(
        "manifest -a qwen3_moe -c config.json -l megatron --option world_size=1 -o whole.json"
    )


if __name__ == "__main__":
    trainer = "examples.megatron_to_sglang.trainer"
    sys.exit(run(trainer, "Megatron-core, tp 2, ep 2, BF16", describe_whole))
