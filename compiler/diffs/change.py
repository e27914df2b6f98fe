"""What a diff finds: one change of what a document means, for all that it changes alike."""

from dataclasses import dataclass
from enum import StrEnum


class Weight(StrEnum):
    """How closely a reviewer should look."""

    GRANT = "grant"
    """Something lossy or unused is allowed, or happens, that was not before."""
    CHANGE = "change"
    """Other bytes move, or lie elsewhere."""
    NOTE = "note"
    """No byte is different."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        kind: what changed, as `buffer.shape`: the thing, a dot, and which of its properties.
        weight: how closely to look.
        subject: the name of the thing, as the newer document that has it writes it.
        old: what it was; None for what is new.
        new: what it is now; None for what is gone.
        count: how many tensors, buffers or such things changed in this way.
        members: which of a family's members they are, as `layer 0..35`; empty for all of one.
        pointer: where it is: a JSON pointer into the new document, or where `new` is None into the
            old one.
        detail: which part of the subject it is, or a remark.
        follows: the buffer whose change this one follows from, for the scales of a weight.
    """

    kind: str
    weight: Weight
    subject: str
    old: str | None
    new: str | None
    count: int = 1
    members: str = ""
    pointer: str = ""
    detail: str = ""
    follows: str = ""
