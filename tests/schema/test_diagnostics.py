import json
import pickle
import random
import re
from pathlib import Path

import pytest

from tranship.schema.diagnostics import (
    Diagnostic,
    DiagnosticError,
    Label,
    Location,
    Severity,
    explanation,
    known_codes,
    sort_key,
    title,
)
from tranship.schema.nearest import nearest
from tranship.schema.render import render_human, render_json

ROOT = Path(__file__).parents[2]

TEXT = '{\n  "world_size": 0,\n  "world_size": 8\n}\n'
REPEATED = Diagnostic(
    "TS103",
    "'world_size' occurs twice in one object",
    Location("sender.json", "/world_size", 3, 3),
    labels=(Label(Location("sender.json", "/world_size", 2, 3), "first here"),),
    help="keep one of the two",
)
UNKNOWN = Diagnostic(
    "TS110",
    "the document has no field 'axis'",
    Location("sender.json", "/axis", 2, 17),
    severity=Severity.WARNING,
    expected='one of "axes", "side"',
    help="give the axes of the mesh as a list, from the outermost to the innermost one",
    suggestion='"axes": [\n  {"name": "tp"}\n]',
)

GOLDEN = """\
warning[TS110]: unknown field
  the document has no field 'axis'
  --> sender.json:2:17  #/axis
  |
2 |   "world_size": 0,
  |                 ^
  = expected: one of "axes", "side"
  = help: give the axes of the mesh as a list,
          from the outermost to the innermost one
  = suggestion:
      "axes": [
        {"name": "tp"}
      ]
  = explain: tranship explain TS110

error[TS103]: key occurs twice
  'world_size' occurs twice in one object
  --> sender.json:3:3  #/world_size
  |
3 |   "world_size": 8
  |   ^^^^^^^^^^^^
  ::: sender.json:2:3  first here
  = help: keep one of the two
  = explain: tranship explain TS103

1 error, 1 warning
"""


def human(*found: Diagnostic, text: str = TEXT, width: int = 50, color: bool = False) -> str:
    return render_human(found, sources={"sender.json": text}, color=color, width=width)


def marked(line: str, column: int, width: int = 60) -> tuple[str, str]:
    """Render one place; return the line shown and what is above the carets."""
    at = Location("sender.json", "", 1, column)
    shown = human(Diagnostic("TS102", "wrong", at), text=line, width=width).split("\n")
    source, carets = shown[4].removeprefix("1 | "), shown[5].removeprefix("  | ")
    assert max(map(len, shown[4:6])) <= width
    return source, source[carets.index("^") : len(carets)]


def test_the_human_form() -> None:
    assert human(REPEATED, UNKNOWN) == GOLDEN


def test_colors_add_nothing_but_escapes() -> None:
    colored = human(REPEATED, UNKNOWN, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == GOLDEN
    assert "\x1b[1;31merror[TS103]\x1b[0m" in colored
    assert "\x1b[1;33mwarning[TS110]\x1b[0m" in colored


def test_the_terminal_around_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    colored = human(REPEATED, color=True)
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", "20")):
        monkeypatch.setenv(name, value)
    assert human(REPEATED, color=True) == colored
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in human(REPEATED)


def test_only_what_the_message_does_not_say_is_added() -> None:
    found = Diagnostic("TS112", "expected 1, found 2", expected="1", found="2", suggestion="1")
    assert human(found) == (
        "error[TS112]: wrong type\n  expected 1, found 2\n"
        "  = explain: tranship explain TS112\n\n1 error\n"
    )


def test_places_without_text_are_named_only() -> None:
    for at in (Location("other.json", "/a", 3, 1), Location("sender.json", "/a", 99, 1)):
        line = human(Diagnostic("TS102", "wrong", at)).split("\n")[2]
        assert line == f"  --> {at.file}:{at.line}:1  #/a"
    assert "  --> sender.json\n" in human(Diagnostic("TS100", "wrong", Location("sender.json")))


def test_an_explanation_is_named_once_per_code() -> None:
    assert human(REPEATED, REPEATED, UNKNOWN).count("tranship explain TS103") == 1


def test_nothing_found_is_said() -> None:
    assert human() == "no errors\n"


LONG = ", ".join(f'"key{number:03}": {number}' for number in range(100))


@pytest.mark.parametrize("number", [0, 1, 3, 50, 98, 99])
def test_long_lines_are_cut_around_the_place(number: int) -> None:
    name = f'"key{number:03}"'
    shown, above = marked(LONG, LONG.index(name) + 1)
    assert above == name
    assert shown.removeprefix("...").removesuffix("...") in LONG
    assert shown.startswith("...") == (number > 1)
    assert shown.endswith("...") == (number < 98)


def test_a_token_longer_than_the_line_is_marked_as_far_as_it_is_shown() -> None:
    shown, above = marked(f'{{"a": "{"x" * 300}"}}', 7)
    assert shown == f'{{"a": {above}...'
    assert above == '"' + "x" * (len(above) - 1)


@pytest.mark.parametrize(
    ("line", "column", "above"),
    [
        ('{"a": "b, c"}', 7, '"b, c"'),
        ('{"a": "b\\"c"}', 7, '"b\\"c"'),
        ("a = 'b c' # d", 5, "'b c'"),
        ("a = -12.5 # d", 5, "-12.5"),
        ("[null, true]", 8, "true"),
        ("[[1], 2]", 2, "["),
        ('\t{"a": 1}', 3, '"a"'),
    ],
)
def test_the_token_at_the_place_is_underlined(line: str, column: int, above: str) -> None:
    assert marked(line, column)[1] == above


def test_carets_stand_below_wide_characters() -> None:
    at = Location("sender.json", "", 1, 6)
    lines = human(Diagnostic("TS102", "wrong", at), text='"\u8239", x').split("\n")
    assert lines[4:6] == ['1 | "\u8239", x', "  |       ^"]


def test_text_cannot_steer_the_terminal() -> None:
    found = Diagnostic(
        "TS110",
        "no field '\x1b[2J\u202e'",
        Location("a\nb\udcff.json", "/\x1b", 1, 1),
        labels=(Label(Location("sender.json"), "\x07"),),
        help="\x9b31m",
        suggestion="\x1bc",
    )
    shown = human(found) + render_human(
        [found], sources={"a\nb\udcff.json": "\x1b[2J\r"}, color=False, width=80
    )
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "no field '?[2J?'" in shown


def test_the_json_form_is_one_document_with_the_same_keys_everywhere() -> None:
    odd = Diagnostic("TS100", "missing", Location("a\udcff.json"))
    document = json.loads(render_json([REPEATED, UNKNOWN, odd, Diagnostic("TS102", "no place")]))
    assert document.keys() == {"diagnostics"}
    nowhere, strange, warning, error = document["diagnostics"]
    assert nowhere.keys() == strange.keys() == warning.keys() == error.keys()
    assert (nowhere["file"], strange["file"]) == (None, "a\\udcff.json")
    assert warning["severity"] == "warning"
    assert error == {
        "code": "TS103",
        "severity": "error",
        "title": "key occurs twice",
        "message": "'world_size' occurs twice in one object",
        "file": "sender.json",
        "pointer": "/world_size",
        "line": 3,
        "column": 3,
        "expected": None,
        "found": None,
        "labels": [
            {
                "file": "sender.json",
                "pointer": "/world_size",
                "line": 2,
                "column": 3,
                "text": "first here",
            }
        ],
        "help": "keep one of the two",
        "suggestion": None,
    }


def test_diagnostics_are_in_the_order_of_file_line_code() -> None:
    places = [("a", 2, "TS110"), ("a", 10, "TS103"), ("a", 10, "TS110"), ("a", None, "TS100")]
    places += [("b", 1, "TS112")]
    ordered = [Diagnostic(code, "m", Location(file, "", line, 1)) for file, line, code in places]
    shuffled = random.Random(3).sample(ordered, len(ordered))
    assert shuffled != ordered
    assert sorted(shuffled, key=sort_key) == ordered
    assert render_json(shuffled) == render_json(ordered)
    assert human(*shuffled) == human(*ordered)


def test_an_error_carries_its_diagnostics_and_says_them_in_lines() -> None:
    error = DiagnosticError(iter([REPEATED, Diagnostic("TS100", "missing")]))
    assert str(error).split("\n") == [
        "sender.json:3:3: TS103: 'world_size' occurs twice in one object",
        "TS100: missing",
    ]
    assert pickle.loads(pickle.dumps(error)).diagnostics == error.diagnostics
    with pytest.raises(ValueError, match="needs a diagnostic"):
        DiagnosticError([])


def test_every_page_has_a_title_of_its_own_and_a_text() -> None:
    titles = [title(code) for code in known_codes()]
    assert len(set(titles)) == len(titles)
    for code, heading in zip(known_codes(), titles, strict=True):
        first, second, *page = explanation(code).split("\n")
        assert (first, second) == (f"# {heading}", "")
        assert heading
        assert len("".join(page)) > 100


def test_every_code_in_use_has_a_page_and_every_page_a_use() -> None:
    folders = [ROOT / folder for folder in ("schema", "compiler", "runtime", "tranship")]
    sources = [source for folder in folders for source in folder.rglob("*.py")]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    assert set(re.findall(r'"(TS\d{3})"', text)) == set(known_codes())


@pytest.mark.parametrize("code", ["TS999", "", "ts100", "../TS100", "TS100.md"])
def test_unknown_codes_have_no_page(code: str) -> None:
    with pytest.raises(KeyError):
        explanation(code)
    with pytest.raises(KeyError):
        title(code)


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("shpae", ["dtype", "shape", "strides"], ("shape",)),
        ("DTYPE", ["dtype", "shape"], ("dtype",)),
        ("row-major", ["row_major", "rows"], ("row_major",)),
        ("q_proj", ["k_proj", "q_prj", "o"], ("q_prj", "k_proj")),
        ("zzz", ["dtype", "shape"], ()),
        ("a" * 100_000, ["a" * 99_999], ()),
    ],
)
def test_near_names(name: str, candidates: list[str], expected: tuple[str, ...]) -> None:
    assert nearest(name, candidates) == expected
    assert nearest(name, reversed(candidates), limit=1) == expected[:1]
