"""What an expression may read where it stands, and whether it then always has a value."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tranship.schema import expression, indexset
from tranship.schema.canonical import Path
from tranship.schema.expression import Expression, ExpressionError, IntArray, Interval
from tranship.schema.indexset import IndexSetError
from tranship.schema.manifest import IntExpression
from tranship.schema.nearest import nearest
from tranship.schema.rules.findings import Finding
from tranship.schema.template import TemplateError, parse_template

MAX_MEMBERS = 2**22
"""Most members that one family may stand for, its pieces' own indices counted in."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The names that an expression may read, with the range of each, and the tables.

    `elsewhere` are names of the document that may not be read in this place.
    """

    readable: Mapping[str, Interval]
    tables: Mapping[str, IntArray]
    elsewhere: frozenset[str] = frozenset()
    seen: dict[IntExpression, tuple[Finding, ...]] = field(
        default_factory=dict[IntExpression, tuple[Finding, ...]], repr=False
    )

    def narrow(self, readable: Iterable[str]) -> "Scope":
        """The scope in which only some of the names may be read."""
        kept = {name: self.readable[name] for name in readable}
        hidden = self.readable.keys() - kept.keys()
        return Scope(kept, self.tables, self.elsewhere | hidden)


@dataclass(frozen=True, slots=True)
class Site:
    """An expression or a template, where it stands, and what it may read."""

    path: Path
    text: IntExpression
    scope: Scope
    is_template: bool = False


def check_site(site: Site) -> Iterator[Finding]:
    """Find what is wrong with one expression, or with those in one template."""
    key = f"{{}}{site.text}" if site.is_template else site.text
    if key not in site.scope.seen:
        site.scope.seen[key] = tuple(_check(site))
    for finding in site.scope.seen[key]:
        yield finding.under(site.path)


def _check(site: Site) -> Iterator[Finding]:
    try:
        parsed = _expressions(site)
    except (ExpressionError, TemplateError) as error:
        kind = "name" if site.is_template else "expression"
        yield Finding("TS130", (), f"{kind} {site.text!r} does not parse: {error}")
        return
    for one in parsed:
        yield from _check_expression(one, site.scope)


def _expressions(site: Site) -> tuple[Expression, ...]:
    if site.is_template:
        return parse_template(str(site.text)).holes
    return (expression.parse(site.text),)


def _check_expression(parsed: Expression, scope: Scope) -> Iterator[Finding]:
    text = expression.to_text(parsed)
    names, tables = expression.variables(parsed), expression.tables(parsed)
    unknown = [_unknown_name(name, text, scope) for name in sorted(names - scope.readable.keys())]
    unknown += [_unknown_table(name, text, scope) for name in sorted(tables - scope.tables.keys())]
    yield from unknown
    if unknown:
        return
    try:
        expression.interval(parsed, scope.readable, scope.tables)
    except ExpressionError as error:
        yield Finding(
            "TS134",
            (),
            f"expression {text!r} may have no value: {error}",
            expected=f"a value for all of {_listed(names)}" if names else None,
        )


def _unknown_name(name: str, text: str | int, scope: Scope) -> Finding:
    if name in scope.elsewhere:
        return Finding(
            "TS133",
            (),
            f"expression {text!r} reads {name!r}, which may not be read here",
            expected=_listed(scope.readable) or "no name at all",
            found=name,
        )
    return _unknown("TS132", "a name", name, text, scope.readable)


def _unknown_table(name: str, text: str | int, scope: Scope) -> Finding:
    return _unknown("TS132", "a table", name, text, scope.tables)


def _unknown(code: str, what: str, name: str, text: str | int, known: Iterable[str]) -> Finding:
    close = nearest(name, known)
    return Finding(
        code,
        (),
        f"expression {text!r} reads {name!r}, which is not {what} here",
        expected=_listed(known) or None,
        found=name,
        help=f"did you mean {close[0]!r}?" if close else None,
        suggestion=close[0] if close else None,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:12])


def index_ranges(indices: Mapping[str, str]) -> dict[str, Interval]:
    """Find the smallest and largest value of every index; (0, 0) where the set does not parse."""
    ranges: dict[str, Interval] = {}
    for name, text in indices.items():
        try:
            members = indexset.parse(text)
        except IndexSetError:
            members = (0,)
        ranges[name] = members[0], members[-1]
    return ranges


def check_indices(
    path: Path, indices: Mapping[str, str], others: Mapping[str, str]
) -> Iterator[Finding]:
    """Find index sets that do not parse, and families that stand for too many members.

    `others` are the indices of the family around this one, counted with it.
    """
    count = 1
    for name, text in {**others, **indices}.items():
        try:
            count *= len(indexset.parse(text))
        except IndexSetError as error:
            count = 0
            if name in indices:
                yield Finding("TS131", (*path, name), f"index set of {name!r}: {error}", found=text)
    if count > MAX_MEMBERS:
        yield Finding(
            "TS135",
            path,
            f"the family stands for {count:,} members",
            expected=f"at most {MAX_MEMBERS:,}",
            found=f"{count:,}",
        )
