"""`tranship schema`: the JSON Schemas of the file formats."""

from pathlib import Path

import typer
from rich.text import Text

from tranship.cli.output import Answer, Status
from tranship.schema.canonical import Json
from tranship.schema.codec import write_atomically
from tranship.schema.publish import (
    NAMES,
    committed_bytes,
    file_name,
    json_schema,
    published_bytes,
)


def run(name: str | None, output: str | None, *, check: bool) -> Answer:
    """Print one schema or list all, write them to a folder, or compare them with files.

    Raises:
        DiagnosticError: TS107, a file cannot be written.
        typer.BadParameter: there is no format `name`.
    """
    if name is not None and name not in NAMES:
        raise typer.BadParameter(f"there is no format {name!r}; the formats are {', '.join(NAMES)}")
    names = NAMES if name is None else (name,)
    if check:
        return _check(names, output)
    if output is not None:
        return _write(names, Path(output))
    if name is None:
        titles = {known: json_schema(known)["description"] for known in NAMES}
        page = [Text(f"{known:<10} {text.splitlines()[0]}") for known, text in titles.items()]
        return Answer(page, {"schemas": list(NAMES)})
    return Answer(
        [Text(published_bytes(name).decode().rstrip("\n"))], {"schema": json_schema(name)}
    )


def _write(names: tuple[str, ...], folder: Path) -> Answer:
    written: list[Json] = []
    for name in names:
        path = str(folder / file_name(name))
        write_atomically(path, published_bytes(name))
        written.append(path)
    return Answer([Text(f"wrote {path}") for path in written], {"written": written})


def _check(names: tuple[str, ...], folder: str | None) -> Answer:
    stale = [name for name in names if _committed(name, folder) != published_bytes(name)]
    files = [file_name(name) for name in stale]
    hint = f"run: tranship schema -o {folder or 'schema/published'}" if stale else ""
    lines = [f"{file} is out of date" for file in files] or ["all published schemas are up to date"]
    return Answer(
        [Text(line) for line in lines],
        {"stale": list(files)},
        Status.DIFFERENT if stale else Status.OK,
        hint=hint,
    )


def _committed(name: str, folder: str | None) -> bytes | None:
    if folder is None:
        return committed_bytes(name)
    file = Path(folder) / file_name(name)
    return file.read_bytes() if file.is_file() else None
