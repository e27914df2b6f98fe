"""What SGLang finds on Blackwell, with DeepGEMM: there it packs scales once it has loaded them.

All that requantizes is SGLang's own, and where DeepGEMM is not installed what packs is, too, in
torch. That lacks two functions of DeepGEMM's layout module, which follow from what TMA reads.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def align(size: int, multiple: int) -> int:
    """Round up."""
    return -(-size // multiple) * multiple


def get_tma_aligned_size(size: int, item: int) -> int:
    """Round a number of items up to a multiple of 16 bytes."""
    return align(size, 16 // item)


def pretend() -> None:
    """Let SGLang believe in such a GPU where it prepares weights in FP8 blocks."""
    wrapper: Any = importlib.import_module("sglang.srt.layers.deep_gemm_wrapper")
    wrapper.ENABLE_JIT_DEEPGEMM = wrapper.DEEPGEMM_SCALE_UE8M0 = True
    fp8: Any = importlib.import_module("sglang.srt.layers.quantization.fp8")
    fp8._is_cpu = False
    if importlib.util.find_spec("deep_gemm") is None:
        _stand_in()


def _stand_in() -> None:
    names = ("deep_gemm", "deep_gemm.utils", "deep_gemm.utils.layout")
    package, utils, layout = modules = [ModuleType(name) for name in names]
    own: Any = importlib.import_module("sglang.srt.layers.quantization.fp8_utils")
    packs = own._get_mn_major_tma_aligned_packed_ue8m0_tensor_torch_impl
    vars(layout).update(get_mn_major_tma_aligned_packed_ue8m0_tensor=packs)
    vars(utils).update(layout=layout, align=align, get_tma_aligned_size=get_tma_aligned_size)
    vars(package).update(utils=utils)
    sys.modules.update(zip(names, modules, strict=True))
