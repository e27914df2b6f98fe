"""FSDP2 on two ranks updates a real SGLang model in FP8 on two ranks, on a CPU."""

import sys
from pathlib import Path

# Examples are not installed with tranship.
sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.live.deployment import run

if __name__ == "__main__":
    sys.exit(run("examples.fsdp_to_sglang.trainer", "FSDP2, BF16"))
