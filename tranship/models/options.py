"""Options of a layout as the command line gives them, and their defaults."""

from collections.abc import Mapping

from tranship.models.declared import Layout, Option
from tranship.models.language import Value
from tranship.models.problems import Problems
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.nearest import nearest

Setting = int | bool | str
"""An option as a manifest records it."""

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def read_options(
    layout: Layout, title: str, given: Mapping[str, str], problems: Problems
) -> tuple[dict[str, Value], dict[str, Setting]]:
    """Read options, and return all of them for expressions and the given ones for the manifest.

    Args:
        layout: Which options there are.
        title: The layout's name, for messages.
        given: Texts by name.
        problems: Takes TS753.
    """
    for name in given:
        if name not in layout.options:
            problems.add(_unknown(name, layout, title))
    values: dict[str, Value] = {}
    settings: dict[str, Setting] = {}
    for name, option in layout.options.items():
        if name not in given:
            if option.required:
                message = f"{title} needs option {name}: {option.doc}"
                problems.add(Diagnostic("TS753", message, suggestion=f"--option {name}=..."))
            values[name] = _default(option)
            continue
        parsed = _parse(option, given[name])
        if parsed is None:
            expected = _expected(option)
            message = f"option {name} of {title} cannot be {given[name]!r}"
            problems.add(Diagnostic("TS753", message, expected=expected, found=given[name]))
            continue
        values[name] = parsed
        settings[name] = (
            given[name] if isinstance(parsed, tuple | None) else _setting(option, parsed)
        )
    return values, settings


def _setting(option: Option, value: Value) -> Setting:
    return bool(value) if option.type == "bool" else value if isinstance(value, int) else str(value)


def _default(option: Option) -> Value:
    if option.type == "ints" and isinstance(option.default, str):
        return _parse(option, option.default)
    return int(option.default) if isinstance(option.default, bool) else option.default


def _parse(option: Option, text: str) -> Value:
    match option.type:
        case "bool":
            truth = _TRUTH.get(text.lower())
            return None if truth is None else int(truth)
        case "int":
            number = _integer(text)
            low = option.minimum
            return None if number is None or (low is not None and number < low) else number
        case "ints":
            numbers = [_integer(part) for part in text.split(",")]
            return None if any(n is None or n < 0 for n in numbers) else tuple(numbers)
        case "str":
            return None if option.choices and text not in option.choices else text


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _expected(option: Option) -> str:
    match option.type:
        case "bool":
            return "true or false"
        case "int":
            return "an integer" if option.minimum is None else f"an integer from {option.minimum}"
        case "ints":
            return "integers, separated by commas"
        case "str":
            return f"one of {', '.join(option.choices)}"


def _unknown(name: str, layout: Layout, title: str) -> Diagnostic:
    close = nearest(name, layout.options, limit=1)
    return Diagnostic(
        "TS753",
        f"{title} has no option {name!r}",
        expected=f"one of {', '.join(layout.options)}" if layout.options else "no options",
        found=name,
        help=f"did you mean {close[0]}?" if close else None,
        suggestion=close[0] if close else None,
    )
