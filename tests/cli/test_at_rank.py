"""A manifest as one rank sees it says what the whole manifest says of that rank."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.example import engine, trainer
from tests.schema.strategies import manifests
from tranship.cli.at_rank import manifest_at
from tranship.schema.expand import declared_ranks, expand
from tranship.schema.expression import parse, variables
from tranship.schema.manifest import Manifest


@given(manifests(), st.data())
@settings(max_examples=100, deadline=None)
def test_rank_has_the_same_buffers(manifest: Manifest, data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from(declared_ranks(manifest)))
    assert expand(manifest_at(manifest, rank), [rank]) == expand(manifest, [rank])


@pytest.mark.parametrize("manifest", [trainer(), engine()])
@pytest.mark.parametrize("rank", [0, 1])
def test_no_axis_is_left_in_what_a_rank_sees(manifest: Manifest, rank: int) -> None:
    own = manifest_at(manifest, rank)
    axes = {axis.name for axis in manifest.axes}
    pieces = [piece for buffer in own.buffers for piece in buffer.pieces]
    entries = [entry for piece in pieces for entry in (*piece.start, *piece.extent, piece.offset)]
    assert entries
    assert not any(variables(parse(entry)) & axes for entry in entries)
    assert all(not piece.at for piece in pieces)
