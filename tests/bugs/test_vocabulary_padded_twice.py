from tests.bugs.modules import EMBEDDING
from tests.bugs.restate import (
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    piece,
    tensor,
    whole,
)

LOCAL = "embedding.word_embeddings.weight"
ENGINE = manifest(
    "receiver", [tensor(EMBEDDING, (1000, 64))], [whole(EMBEDDING, "bf16", (1000, 64))]
)


def test_a_padded_vocabulary_is_not_the_vocabulary() -> None:
    """Megatron-Bridge#5353: under DTensor the vocabulary was padded a second time."""
    rows = piece(EMBEDDING, (512, 64), ("tp * 512", 0))
    padded = buffer(LOCAL, "bf16", (512, 64), rows)
    assert_refused(
        findings(manifest("sender", [tensor(EMBEDDING, (1024, 64))], [padded], tp=(2, 1)), ENGINE),
        "TS203",
        f"the two sides give {EMBEDDING} different shapes",
        "expected [1024, 64] (sender); found [1000, 64] (receiver)",
        "declare true sizes on both sides and padding as fills",
    )

    true = piece(EMBEDDING, ("min(512, 1000 - tp * 512)", 64), ("tp * 512", 0))
    padding = {
        "at": {"tp": 1},
        "offset": 488 * 64,
        "sizes": [24, 64],
        "strides": [64, 1],
        "reason": "rows of padding, which no token reads",
    }
    held = buffer(LOCAL, "bf16", (512, 64), true, fills=[padding])
    assert_fine(manifest("sender", [tensor(EMBEDDING, (1000, 64))], [held], tp=(2, 1)), ENGINE)


def test_rows_past_the_vocabulary_are_no_rows_of_it() -> None:
    """The same, where only the pieces count the padding in."""
    rows = piece(EMBEDDING, (512, 64), ("tp * 512", 0))
    padded = buffer(LOCAL, "bf16", (512, 64), rows)
    assert_refused(
        findings(manifest("sender", [tensor(EMBEDDING, (1000, 64))], [padded], tp=(2, 1)), ENGINE),
        "TS165",
        f"the piece leaves tensor {EMBEDDING!r}",
        "found start [512, 0], extent [512, 64]",
    )
