"""No derived buffer is made from itself, by whatever way."""

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import numpy as np

from tranship.schema.manifest import Derived
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.nametables import NameTable, numbers_of, split_name
from tranship.schema.rules.subject import Subject

Member = tuple[int, int]
"""A buffer family, and a row of its places."""

Inputs = Mapping[int, tuple[str, ...]]
"""The inputs of every derived buffer family."""


def derived_cycles(subject: Subject) -> Iterator[Finding]:
    """Find a derived buffer that is an input of its own inputs.

    Families may depend on one another in a circle without any member doing so (layer 3 on layer 2),
    so members are looked at, but only then.
    """
    inputs = {
        number: buffer.role.inputs
        for number, buffer in enumerate(subject.manifest.buffers)
        if isinstance(buffer.role, Derived)
    }
    if not _cycle(_families(subject, inputs)):
        return
    circle = _cycle(_members(subject, inputs))
    if circle:
        names = [subject.manifest.buffers[family].name for family, _ in reversed(circle)]
        yield Finding(
            "TS186",
            ("buffers", circle[-1][0], "role", "inputs"),
            f"buffer {names[0]!r} is derived from itself",
            expected="inputs that can be made first",
            found=" from ".join(repr(name) for name in names),
        )


def _cycle(graph: Mapping[Member, Iterable[Member]]) -> list[Member]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _families(subject: Subject, inputs: Inputs) -> dict[Member, list[Member]]:
    """Which derived families an input of each derived family may be of."""
    graph: dict[Member, list[Member]] = {}
    for number, names in inputs.items():
        texts = [split_name(name).texts for name in names]
        named = {m.number for t in texts for m in subject.buffer_members.get(t, ())}
        graph[number, 0] = [(family, 0) for family in named & inputs.keys()]
    return graph


def _members(subject: Subject, inputs: Inputs) -> dict[Member, list[Member]]:
    """Which derived buffers are inputs of each derived buffer, on each kind of rank."""
    tables = _tables(subject, inputs)
    graph: dict[Member, list[Member]] = {}
    for number, names in inputs.items():
        own = tables[split_name(subject.manifest.buffers[number].name).texts]
        places = own.places[number]
        for name in names:
            table = tables.get(split_name(name).texts)
            if table is None:
                continue
            keys = [places.environment[axis] for axis in table.axes]
            keys += numbers_of(name, places, subject.world)
            rows = table.keys.find(keys, places.rows)
            for place in np.flatnonzero(rows >= 0):
                other = int(table.owner[rows[place]]), int(table.place[rows[place]])
                if other[0] in inputs:
                    graph.setdefault((number, int(place)), []).append(other)
    return graph


def _tables(subject: Subject, inputs: Inputs) -> dict[tuple[str, ...], NameTable]:
    """Tables of all buffers concerned, all apart on the same axes: their rows correspond."""
    names = [name for some in inputs.values() for name in some]
    names += [subject.manifest.buffers[number].name for number in inputs]
    members = {split_name(name).texts for name in names} & subject.buffer_members.keys()
    every = [member for texts in members for member in subject.buffer_members[texts]]
    axes = frozenset[str]().union(*(member.at for member in every))
    return {texts: subject.buffer_table(texts, axes) for texts in members}
