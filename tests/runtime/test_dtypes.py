"""The torch dtype of every schema dtype."""

import pytest
import torch

from tranship.runtime.dtypes import bits_dtype, schema_dtype, torch_dtype
from tranship.schema.dtypes import ITEM_SIZE, DType


@pytest.mark.parametrize("dtype", DType)
def test_dtypes_go_to_torch_and_back_and_keep_their_size(dtype: DType) -> None:
    assert schema_dtype(torch_dtype(dtype)) is dtype
    assert torch_dtype(dtype).itemsize == bits_dtype(dtype).itemsize == ITEM_SIZE[dtype]
    assert not bits_dtype(dtype).is_floating_point


def test_other_torch_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="complex64"):
        schema_dtype(torch.complex64)
