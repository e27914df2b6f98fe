"""Whether Megatron-core is there to test with."""

from importlib.metadata import PackageNotFoundError, version

import pytest

try:
    version("megatron-core")
    missing = False
except PackageNotFoundError:
    missing = True

needs_megatron = [
    pytest.mark.megatron,
    pytest.mark.skipif(missing, reason="Megatron-core is not installed"),
]
