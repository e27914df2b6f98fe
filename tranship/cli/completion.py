"""What a shell offers to complete: paths of documents, and codes."""

import os
from collections.abc import Iterator

from tranship.schema.diagnostics import known_codes, title

_DOCUMENTS = (".json", ".toml")


def complete_path(incomplete: str) -> list[str]:
    """Offer folders, and files that may be documents."""
    return list(_paths(incomplete))


def _paths(incomplete: str) -> Iterator[str]:
    folder, name = os.path.split(incomplete)
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
            continue
        path = os.path.join(folder, entry.name)
        if entry.is_dir():
            yield f"{path}{os.sep}"
        elif entry.name.endswith(_DOCUMENTS):
            yield path


def complete_code(incomplete: str) -> list[tuple[str, str]]:
    """Offer codes, with the headings of their pages."""
    return [(code, title(code)) for code in known_codes() if code.startswith(incomplete.upper())]
