"""The transfer file: which manifests, policy, placement and options make one plan."""

from typing import Annotated, Literal

from pydantic import Field

from tranship.schema.formulas import FormulaName
from tranship.schema.manifest import Frozen

TRANSFER_FORMAT = "tranship.transfer/1"

RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]


class Options(Frozen):
    """What the compiler may choose with.

    `formula` quantizes unless the receiver takes powers of two only. `staging_bytes` bounds the
    staging memory of one rank on either side; two rounds are in flight at a time, so that one
    round may stage half of it.
    """

    formula: FormulaName = "divide"
    staging_bytes: Annotated[int, Field(ge=4096, le=2**40)] = 1 << 30


class Transfer(Frozen):
    """`NAME.transfer.toml`. Paths are relative to the file's own folder."""

    format: Literal["tranship.transfer/1"]
    sender: RelativePath
    receiver: RelativePath
    policy: RelativePath | None = None
    placement: RelativePath | None = None
    options: Options = Options()
