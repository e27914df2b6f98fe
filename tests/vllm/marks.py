"""Which tests need vLLM, and where they are skipped."""

from importlib.metadata import PackageNotFoundError, version

import pytest

try:
    version("vllm")
    missing = False
except PackageNotFoundError:
    missing = True

NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(missing, reason="vLLM is not installed")]
