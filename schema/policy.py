"""The policy: which lossy or downgrading edges a transfer may have, and what it may leave out."""

from typing import Annotated, Literal

from pydantic import Field

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Frozen, Reason

POLICY_FORMAT = "tranship.policy/1"

TensorPattern = Annotated[str, Field(min_length=1, max_length=512)]
"""A tensor name in which `*` stands for any text; it is compared with family names as written."""


class Allowance(Frozen):
    """Allow one kind of lossy edge for the tensors that `tensors` matches."""

    edge: Literal["cast", "dequantize", "requantize"]
    tensors: TensorPattern
    sender_dtype: DType
    receiver_dtype: DType
    reason: Reason


class Unused(Frozen):
    """Let the sender hold tensors that no receiver buffer takes."""

    tensors: TensorPattern
    reason: Reason


class Policy(Frozen):
    """What a transfer may do beyond lossless edges. A plan cannot grant itself any of this."""

    format: Literal["tranship.policy/1"]
    allow: tuple[Allowance, ...] = ()
    unused: tuple[Unused, ...] = ()
