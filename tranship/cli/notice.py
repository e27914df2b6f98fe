"""A line of an answer that is about a line of a file."""

from dataclasses import dataclass

from tranship.schema.diagnostics import Location


@dataclass(frozen=True)
class Notice:
    """What an answer says of one place; `is_urgent` if a reviewer must not overlook it."""

    title: str
    text: str
    at: Location | None
    is_urgent: bool = False
