"""Which changes of a manifest break plans that were compiled against the older one.

A plan names its manifests by digest, so that it is refused as soon as anything but layout changes
in them. These are the changes for which a new plan would also move other bytes: were one side to
run with the old declaration and the other with the new, weights would be wrong.
"""

from collections.abc import Mapping
from types import MappingProxyType

from tranship.compiler.diffs.change import Change, Weight
from tranship.schema.manifest import Side

_CODES: Mapping[str, str] = MappingProxyType(
    {
        "side": "TS700",
        "ranks": "TS700",
        "ranks.declared": "TS700",
        "axis": "TS700",
        "buffer.name": "TS701",
        "buffer.ranks": "TS701",
        "buffer.dtype": "TS703",
        "buffer.shape": "TS703",
        "buffer.strides": "TS703",
        "buffer.layout": "TS703",
        "buffer.order": "TS704",
        "buffer.box": "TS704",
        "buffer.place": "TS704",
        "buffer.where": "TS704",
        "buffer.holds": "TS704",
        "buffer.pieces": "TS704",
        "buffer.fills": "TS704",
        "buffer.encoding": "TS705",
        "buffer.blocks": "TS705",
        "buffer.scale_values": "TS705",
        "buffer.scale": "TS705",
        "buffer.scale_of": "TS705",
        "buffer.role": "TS706",
        "buffer.inputs": "TS706",
        "buffer.alias": "TS706",
        "quantization": "TS705",
        "quantization.module": "TS705",
        "tensor": "TS707",
        "tensor.shape": "TS707",
        "tensor.tied_to": "TS707",
    }
)
_UNKNOWN = "TS708"
_GONE, _COME = "TS701", "TS702"


def breaking_code(change: Change, side: Side) -> str | None:
    """Return the code of a change that breaks older plans; None for one that does not.

    A sender may hold more buffers than a plan reads. A buffer of a receiver that a plan does not
    know is never written.
    """
    if change.weight is Weight.NOTE:
        return None
    if change.kind in ("buffer", "buffer.derived"):
        if change.new is None:
            return _GONE
        return _COME if side is Side.RECEIVER else None
    return _CODES.get(change.kind, _UNKNOWN)
