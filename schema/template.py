"""Name templates: text with index expressions in braces, `model.layers.{layer}.weight`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tranship.schema.expression import (
    Expression,
    ExpressionError,
    IntArray,
    Value,
    Variable,
    evaluate,
    parse,
    to_text,
)

_HOLE = re.compile(r"\{([^{}]*)\}")


class TemplateError(ValueError):
    """A template whose braces or expressions do not parse."""


@dataclass(frozen=True, slots=True)
class Template:
    """Literal texts around expressions: `texts[0] holes[0] texts[1] ... texts[-1]`."""

    texts: tuple[str, ...]
    holes: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[str, ...]:
        """The literal texts: two families can name the same tensor only if these are equal."""
        return self.texts

    @property
    def index_names(self) -> tuple[str, ...]:
        """The names in the holes, for templates whose holes are plain indices."""
        return tuple(hole.name for hole in self.holes if isinstance(hole, Variable))


@lru_cache(maxsize=65536)
def parse_template(text: str) -> Template:
    """Parse a name template.

    Raises:
        TemplateError: a stray brace, or an expression that does not parse.
    """
    parts = _HOLE.split(text)
    texts, holes = tuple(parts[::2]), parts[1::2]
    if any("{" in part or "}" in part for part in texts):
        raise TemplateError("unbalanced braces")
    try:
        return Template(texts, tuple(parse(hole) for hole in holes))
    except ExpressionError as error:
        raise TemplateError(str(error)) from None


def template_text(template: Template) -> str:
    """Print a template in canonical form."""
    holes = [f"{{{to_text(hole)}}}" for hole in template.holes] + [""]
    return "".join(text + hole for text, hole in zip(template.texts, holes, strict=True))


def fill_template(
    template: Template, environment: Mapping[str, Value], lookup: Mapping[str, IntArray]
) -> str:
    """Name the one member that the scalar `environment` selects."""
    values = [str(evaluate(hole, environment, lookup)) for hole in template.holes] + [""]
    return "".join(text + value for text, value in zip(template.texts, values, strict=True))
