"""Where things are in a document: JSON pointer -> line and column, for JSON and TOML text.

The standard parsers return values without positions. The scanners here run only once something is
wrong, over text that a parser took; on other text they find less, and never raise.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tranship.schema.diagnostics import Location

MAX_DEPTH = 64
"""Most arrays and objects that may lie within one another, the outermost included."""


@dataclass(slots=True)
class Node:
    """A value in a text: offsets of its name and of itself, and its members by pointer token.

    The elements of an array are members named "0", "1" and so on, and have no name in the text:
    there, `key` equals `start`. `members` is None for what is neither an array nor an object.
    """

    key: int
    start: int
    members: "dict[str, Node] | None" = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A key that occurs again in one object: its pointer, and the offsets of both occurrences."""

    pointer: str
    first: int
    again: int


@dataclass(frozen=True, slots=True)
class Scan:
    """All positions in a text; `root` is None where the text holds no value."""

    root: Node | None
    repeats: tuple[Repeat, ...] = ()


@dataclass(frozen=True)
class Source:
    """The text of one file, and where the parts of its document are in it."""

    file: str
    text: str

    @cached_property
    def scan(self) -> Scan:
        """The positions of everything in the text; TOML if the file is named so, else JSON."""
        return scan_toml(self.text) if self.file.lower().endswith(".toml") else scan_json(self.text)

    def locate(self, pointer: str) -> Location:
        """Find the value at `pointer`, or the nearest thing around it that exists.

        Without any text the location is the pointer alone.
        """
        found, node = self._find(pointer)
        return self.at_offset(node.start, found) if node else Location(self.file, pointer)

    def locate_key(self, pointer: str) -> Location:
        """Find the name of the member at `pointer`; as `locate` where it has none."""
        found, node = self._find(pointer)
        return self.at_offset(node.key, found) if node else Location(self.file, pointer)

    def at_offset(self, offset: int, pointer: str = "") -> Location:
        """Return the line and column of the character at `offset`."""
        line = self.text.count("\n", 0, offset) + 1
        return Location(self.file, pointer, line, offset - self.text.rfind("\n", 0, offset))

    def _find(self, pointer: str) -> tuple[str, Node | None]:
        node, found = self.scan.root, list[str]()
        for part in pointer_parts(pointer):
            inner = node.members.get(part) if node and node.members else None
            if inner is None:
                break
            node = inner
            found.append(part)
        return join_pointer(found), node


def join_pointer(parts: Iterable[str | int]) -> str:
    """Write a JSON pointer (RFC 6901): `["a/b", 3]` gives `/a~1b/3`, no parts give ""."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def pointer_parts(pointer: str) -> list[str]:
    """Read a JSON pointer back into its parts."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


# Possessive quantifiers, and closing quotes that may be missing: every token matches in one go, so
# that no text, however broken, is scanned twice. Groups that hold lookaheads or groups are repeated
# greedily instead, where nothing can fail after them: before Python 3.11.5 they lose their place
# (https://github.com/python/cpython/issues/106052).
_JSON_STRING = r'"(?:[^"\\]++|\\.)*+"?'
_JSON_TOKEN = re.compile(
    rf'(?P<string>{_JSON_STRING})|(?P<open>[\[{{])|(?P<close>[\]}}])|(?P<word>[^\s,:"\[\]{{}}]++)',
    re.DOTALL,
)
_JSON_BRACKET = re.compile(rf"{_JSON_STRING}|[\[\]{{}}]", re.DOTALL)


def too_deep_json(text: str) -> int | None:
    """Return the offset of the first bracket beyond `MAX_DEPTH`, or None."""
    return _too_deep(text, _JSON_BRACKET)


def _too_deep(text: str, brackets: re.Pattern[str]) -> int | None:
    depth = 0
    for match in brackets.finditer(text):
        start = text[match.start()]
        if start in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return match.start()
        elif start in "]}":
            depth -= 1
    return None


def scan_json(text: str) -> Scan:
    """Find every value and every repeated key of a JSON text."""
    return _JsonScanner(text).scan()


class _JsonScanner:
    """One pass over the tokens, with the open arrays and objects on a stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = Node(0, 0, {})
        self.open = [self.root]
        self.path = list[str]()
        self.key: tuple[str, int] | None = None
        self.repeats = list[Repeat]()

    def scan(self) -> Scan:
        for match in _JSON_TOKEN.finditer(self.text):
            if match.lastgroup == "close":
                if len(self.open) > 1:
                    self.open.pop()
                    self.path.pop()
            elif match.lastgroup == "string" and self.key is None and self._in_object():
                self.key = _json_key(match[0]), match.start()
            else:
                self._value(match)
        return Scan((self.root.members or {}).get("0"), tuple(self.repeats))

    def _in_object(self) -> bool:
        return len(self.open) > 1 and self.text[self.open[-1].start] == "{"

    def _value(self, match: re.Match[str]) -> None:
        start = match.start()
        members = self.open[-1].members
        assert members is not None, "only arrays and objects are open"
        name, key = self.key or (str(len(members)), start)
        self.key = None
        node = Node(key, start, {} if match.lastgroup == "open" else None)
        first = members.setdefault(name, node)
        if first is not node:
            self.repeats.append(Repeat(join_pointer([*self.path[1:], name]), first.key, key))
        if match.lastgroup == "open":
            self.open.append(node)
            self.path.append(name)


def _json_key(token: str) -> str:
    if "\\" not in token:
        return token.strip('"')
    try:
        return str(json.loads(token))
    except json.JSONDecodeError:
        return token


_TOML_STRING = (
    r'"""(?:[^"\\]++|\\.|"(?!""))*(?:"{3,5})?+'
    r"|'''(?:[^']++|'(?!''))*(?:'{3,5})?+"
    r'|"(?:[^"\\\n]++|\\.)*+"?+'
    r"|'[^'\n]*+'?+"
)
_TOML_KEY = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+')"""
_TOML_BRACKET = re.compile(
    rf"#[^\n]*+|(?P<dots>(?:{_TOML_KEY}[ \t]*+\.[ \t]*+)+)"
    rf"|{_TOML_STRING}|[\[\]{{}}]|[A-Za-z0-9_-]++",
    re.DOTALL,
)
_TOML_GAP = re.compile(r"(?:[\s,]++|#[^\n]*+)*+")
_TOML_NAME = re.compile(rf"[ \t]*+({_TOML_KEY})[ \t]*+")
_TOML_SCALAR = re.compile(rf"(?:{_TOML_STRING})|[^,\]}}\n#]++", re.DOTALL)


def too_deep_toml(text: str) -> int | None:
    """Return the offset of the first bracket or dotted key beyond `MAX_DEPTH`, or None."""
    for match in _TOML_BRACKET.finditer(text):
        if match["dots"] and len(_TOML_NAME.findall(match["dots"])) >= MAX_DEPTH:
            return match.start()
    return _too_deep(text, _TOML_BRACKET)


def scan_toml(text: str) -> Scan:
    """Find every value of a TOML text; nothing in a text that is not TOML."""
    if too_deep_toml(text) is not None:
        return Scan(None)
    try:
        tomllib.loads(text)
    except ValueError:
        return Scan(None)
    return Scan(_TomlScanner(text).scan())


class _TomlScanner:
    """One pass over valid TOML, statement by statement."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.offset = 0

    def scan(self) -> Node:
        root = table = Node(0, 0, {})
        self._skip_gap()
        while self.offset < len(self.text):
            if self.text.startswith("[", self.offset):
                table = self._header(root)
            else:
                self._assignment(table)
            self._skip_gap()
        return root

    def _header(self, root: Node) -> Node:
        start = self.offset
        brackets = 2 if self.text.startswith("[[", start) else 1
        self.offset += brackets
        *outer, name = self._names()
        self.offset += brackets
        members = _table(root, outer, start)
        if brackets == 1:
            return members.setdefault(name, Node(start, start, {}))
        tables = members.setdefault(name, _Tables(start, start, {}))
        assert tables.members is not None, "TOML lets [[name]] extend no plain value"
        return tables.members.setdefault(str(len(tables.members)), Node(start, start, {}))

    def _assignment(self, table: Node) -> None:
        start = self.offset
        *outer, name = self._names()
        self.offset += 1  # the equals sign
        _table(table, outer, start)[name] = self._value(start)

    def _value(self, key: int | None = None) -> Node:
        self._skip_gap()
        node = Node(self.offset if key is None else key, self.offset)
        opening = self.text[self.offset]
        if opening not in "[{":
            self._take(_TOML_SCALAR)
            return node
        node.members = {}
        self.offset += 1
        while not self._closes("]" if opening == "[" else "}"):
            if opening == "[":
                node.members[str(len(node.members))] = self._value()
            else:
                self._assignment(node)
        return node

    def _closes(self, bracket: str) -> bool:
        self._skip_gap()
        ends = self.text[self.offset] == bracket
        self.offset += ends
        return ends

    def _names(self) -> list[str]:
        names = [_toml_key(self._take(_TOML_NAME)[1])]
        while self.text[self.offset] == ".":
            self.offset += 1
            names.append(_toml_key(self._take(_TOML_NAME)[1]))
        return names

    def _skip_gap(self) -> None:
        self._take(_TOML_GAP)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self.text, self.offset)
        assert match, "the text is valid TOML"
        self.offset = match.end()
        return match


class _Tables(Node):
    """An array that `[[name]]` headers fill; other headers lead into its last table."""


def _table(node: Node, names: list[str], start: int) -> dict[str, Node]:
    """Return the members of the table that `names` lead to, making the tables that are new."""
    for name in names:
        node = _members(node).setdefault(name, Node(start, start, {}))
    return _members(node)


def _members(node: Node) -> dict[str, Node]:
    assert node.members is not None, "TOML lets no one extend a plain value"
    if isinstance(node, _Tables):
        return _members(node.members[str(len(node.members) - 1)])
    return node.members


def _toml_key(token: str) -> str:
    return str(next(iter(tomllib.loads(f"{token} = 0"))))
