"""tranship's way beside others' ways of the same transfer, one after another on the same GPUs.

    python benchmarks/compare.py quantize|colocated|network --case qwen3-30b-experts --layers 14

Prints what `peers.py` prints, and then what `pack.py` or `update.py` does of the same case.
"""

import argparse

import pack
import peers
import torch
import update
from ranks import run_ranks
from shapes import MODELS, case

OWN = {"colocated": ("colocated",), "network": ("nccl", "push")}
"""tranship's ways of what others do."""
REPEAT = 15


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("quantize", "colocated", "network"))
    parser.add_argument("--case", choices=sorted(MODELS), default="qwen3-30b-experts")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--repeat", type=int, default=3, help="of others' ways, which take long")
    given = parser.parse_args()
    options = {"layers": given.layers, "precision": "fp8"}
    device = torch.device("cuda", 0)
    if given.what == "quantize":
        peers.run_quantize(case(given.case, **options), device, given.repeat)
        torch.cuda.empty_cache()
        pack.measure(case(given.case, **options), REPEAT)
        return
    if given.what == "colocated":
        peers.run_colocated(given.case, options, device, given.repeat)
        torch.cuda.empty_cache()
    else:
        peers.run_network(given.case, options, "cuda", given.repeat)
    for way in OWN[given.what]:
        run_ranks(update.rank, 2, way, given.case, options, REPEAT)


if __name__ == "__main__":
    main()
