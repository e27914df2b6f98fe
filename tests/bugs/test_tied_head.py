import pytest

from tests.bugs.modules import EMBEDDING, HEAD
from tests.bugs.restate import (
    Json,
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    tensor,
    whole,
)

SHAPE = (1000, 64)
EMBEDDED = tensor(EMBEDDING, SHAPE)
TIED = tensor(HEAD, SHAPE, tied_to=EMBEDDING)
TRAINER = manifest("sender", [EMBEDDED], [whole(EMBEDDING, "bf16", SHAPE)])


def test_a_head_with_memory_of_its_own_does_not_stay_behind() -> None:
    """prime-rl#2823: a tied head that was kept apart kept its old values."""
    own = [whole(EMBEDDING, "bf16", SHAPE), whole(HEAD, "bf16", SHAPE)]
    untied = manifest("receiver", [EMBEDDED, tensor(HEAD, SHAPE)], own)
    assert_refused(
        findings(TRAINER, untied),
        "TS201",
        f"no sender piece holds {HEAD}",
        f"expected a sender piece of {HEAD} [1000, 64]",
    )
    assert_fine(TRAINER, manifest("receiver", [EMBEDDED, TIED], own))


@pytest.mark.parametrize("declared", [[EMBEDDED], [EMBEDDED, TIED]])
def test_a_head_that_is_the_embeddings_memory_is_no_alarm(declared: list[Json]) -> None:
    """labs-molt#26: a tied head was reported as missing from the checkpoint."""
    alias = buffer(HEAD, "bf16", SHAPE, role={"kind": "alias", "of": EMBEDDING})
    assert_fine(TRAINER, manifest("receiver", declared, [whole(EMBEDDING, "bf16", SHAPE), alias]))
