"""A model: the sizes that a config.json gives an architecture, and its logical tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

from tranship.models.algebra import Ranges
from tranship.models.declared import Architecture, Constraint, Domain, Size, TensorEntry
from tranship.models.language import LanguageError, Scope, Value, evaluate, holds, number
from tranship.models.problems import Problems
from tranship.models.words import fill_words
from tranship.schema import indexset
from tranship.schema.codec import Source
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.dtypes import DType
from tranship.schema.manifest import MAX_DIM, TensorFamily
from tranship.schema.template import fill_template, parse_template

Config = Mapping[str, object]
"""What a config.json holds."""

NO_RANGES = Ranges({}, {})

MAX_MEMBERS = 2**16
"""Most layers or experts that a model may have."""

_DTYPES = {
    "bfloat16": DType.BF16,
    "float16": DType.F16,
    "float32": DType.F32,
}


@dataclass(frozen=True)
class ModelTensor:
    """A logical tensor family and what it is for."""

    role: str
    family: TensorFamily

    @property
    def name(self) -> str:
        """The checkpoint's name for it, with indices in braces."""
        return self.family.name

    @property
    def module(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape."""
        return self.family.shape

    @property
    def indices(self) -> dict[str, str]:
        """The index sets."""
        return self.family.indices

    def modules(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """Name every module of the family, after its indices."""
        template = parse_template(self.module)
        for members in product(*(indexset.parse(text) for text in self.indices.values())):
            chosen = dict(zip(self.indices, members, strict=True))
            yield members, fill_template(template, chosen, {})


@dataclass(frozen=True)
class Model:
    """All that a layout needs to know of a model."""

    sizes: Mapping[str, Value]
    dtype: DType
    tensors: Mapping[str, ModelTensor]
    ignored: tuple[str, ...]
    quantization: str | None


def read_model(
    architecture: Architecture, file: str, config: Config, source: Source, problems: Problems
) -> Model:
    """Size an architecture by a config.json.

    Args:
        architecture: The architecture.
        file: Its file, for diagnostics.
        config: The parsed config.json.
        source: Its text.
        problems: Takes TS751 to TS755 and TS759.

    Raises:
        DiagnosticError: sizes are missing or of the wrong kind, so that nothing else can be said.
    """
    _check_type(architecture, config, source, problems)
    problems.check()
    sizes = _sizes(architecture, file, config, source, problems)
    problems.check()
    scope = Scope({**sizes, "model_type": str(config.get("model_type"))}, NO_RANGES)
    check_constraints(architecture.constraints, scope, file, problems)
    problems.check()
    tensors: dict[str, ModelTensor] = {}
    for place, entry in enumerate(architecture.tensors):
        with problems.gather(file, f"/tensors/{place}", entry.name):
            for tensor in _tensors(architecture, entry, scope):
                tensors[tensor.role] = tensor
    problems.check()
    quantization = _quantization(config)
    dtype = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    return Model(
        scope.names,
        _DTYPES.get(str(dtype), DType.BF16),
        tensors,
        _ignored(quantization),
        _method(quantization),
    )


def _check_type(
    architecture: Architecture, config: Config, source: Source, problems: Problems
) -> None:
    found = config.get("model_type")
    if found not in architecture.model_types:
        problems.add(
            Diagnostic(
                "TS752",
                f"the config is of model_type {found!r}, which is no {architecture.title}",
                source.locate("/model_type" if "model_type" in config else ""),
                expected=" or ".join(architecture.model_types),
                found=str(found),
            )
        )


def _sizes(
    architecture: Architecture, file: str, config: Config, source: Source, problems: Problems
) -> dict[str, Value]:
    sizes: dict[str, Value] = {}
    for name, size in architecture.sizes.items():
        with problems.gather(file, f"/sizes/{name}", name):
            try:
                sizes[name] = _size(size, config, Scope(sizes, NO_RANGES))
            except _MissingError as error:
                problems.add(
                    Diagnostic("TS751", str(error), source.locate(""), expected=error.expected)
                )
    return sizes


class _MissingError(ValueError):
    expected = "a number that is not negative, true, false or a list of numbers"


def _size(size: Size, config: Config, scope: Scope) -> Value:
    if size.value is not None:
        return evaluate(size.value, scope)
    paths = (size.field,) if isinstance(size.field, str) else size.field or ()
    for path in paths:
        there, found = _field(config, path)
        if there and found is None and size.null is not None:
            return evaluate(size.null, scope)
        if there and found is not None:
            return _plain(path, found)
    if size.default is None:
        raise _MissingError(f"the config has no {' or '.join(paths)}")
    return evaluate(size.default, scope)


def _field(config: Config, path: str) -> tuple[bool, object]:
    value: object = config
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = cast("Mapping[str, object]", value)[part]
    return True, value


def _plain(path: str, value: object) -> Value:
    match value:
        case bool():
            return int(value)
        case int() | float() if 0 <= value <= MAX_DIM:
            return value
        case str():
            return value
        case list():
            return tuple(_plain(path, item) for item in cast("list[object]", value))
        case _:
            raise _MissingError(f"the config's {path} is {value!r}")


def check_constraints(
    constraints: tuple[Constraint, ...], scope: Scope, file: str, problems: Problems
) -> None:
    """Find the constraints that do not hold (TS754)."""
    for place, one in enumerate(constraints):
        with problems.gather(file, f"/constraints/{place}"):
            if (one.when is None or holds(one.when, scope)) and not holds(one.require, scope):
                hint = None if one.help is None else fill_words(one.help, scope)
                message = fill_words(one.message, scope)
                problems.add(Diagnostic("TS754", message, help=hint))


def members(domain: Domain, scope: Scope) -> tuple[int, ...]:
    """List the members of a domain.

    Raises:
        LanguageError: an expression of the domain has no value.
    """
    count = number(domain.count, scope)
    if count > MAX_MEMBERS:
        raise LanguageError(f"{domain.index} has {count:,} members, more than {MAX_MEMBERS:,}")
    everything = range(count)
    if domain.when is None:
        return tuple(everything)
    condition = domain.when
    return tuple(n for n in everything if holds(condition, scope.plus({domain.index: n})))


def _tensors(architecture: Architecture, entry: TensorEntry, scope: Scope) -> Iterator[ModelTensor]:
    if entry.when is not None and not holds(entry.when, scope):
        return
    indices: dict[str, str] = {}
    for name in entry.over:
        if name not in architecture.domains:
            raise LanguageError(f"there is no domain {name!r}")
        domain = architecture.domains[name]
        found = members(domain, scope)
        if not found:
            return
        indices[domain.index] = indexset.to_text(found)
    shape = tuple(number(size, scope) for size in entry.shape)
    yield ModelTensor(entry.role, TensorFamily(name=entry.name, indices=indices, shape=shape))
    if entry.bias is not None and holds(entry.bias, scope):
        name = entry.name.removesuffix(".weight") + ".bias"
        family = TensorFamily(name=name, indices=indices, shape=shape[:1])
        yield ModelTensor(f"{entry.role}_bias", family)


def _quantization(config: Config) -> Mapping[str, object]:
    found = config.get("quantization_config")
    return cast("Mapping[str, object]", found) if isinstance(found, dict) else {}


def _ignored(quantization: Mapping[str, object]) -> tuple[str, ...]:
    for field in ("ignored_layers", "modules_to_not_convert"):
        listed = quantization.get(field)
        if isinstance(listed, list):
            return tuple(str(name) for name in cast("list[object]", listed))
    return ()


def _method(quantization: Mapping[str, object]) -> str | None:
    """Name the quantization of the config itself, if it is one that can be declared."""
    block = quantization.get("weight_block_size")
    if quantization.get("quant_method") != "fp8" or block != [128, 128]:
        return None
    power_of_two = quantization.get("scale_fmt") == "ue8m0"
    return "fp8-block128-ue8m0" if power_of_two else "fp8-block128"
