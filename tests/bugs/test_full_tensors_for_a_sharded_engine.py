from tests.bugs.modules import GATE, GATE_UP, HIDDEN, INNER, LAYERS, UP, dense_mlp
from tests.bugs.restate import assert_fine, assert_refused, buffer, findings, manifest, piece, whole

TRAINER = manifest(
    "sender", dense_mlp(), [whole(n, "bf16", (INNER, HIDDEN), indices=LAYERS) for n in (GATE, UP)]
)


def test_full_tensors_do_not_go_into_shards() -> None:
    """prime-rl#3577: the broadcast took the engine for one rank, and its buffers are slices."""
    rows = INNER * HIDDEN
    full = piece(GATE, (INNER, HIDDEN)), piece(UP, (INNER, HIDDEN), offset=rows)
    assert_refused(
        findings(
            TRAINER,
            manifest(
                "receiver",
                dense_mlp(),
                [buffer(GATE_UP, "bf16", (INNER, HIDDEN), *full, indices=LAYERS)],
                tp=(2, 1),
            ),
        ),
        "TS164",
        f"a piece of {UP!r} leaves buffer {GATE_UP!r}",
        "expected elements 0 to 32767; found elements 32768 to 65535",
        "hold the part that is this rank's, with start and extent by its axes",
    )

    shard = (INNER // 2, HIDDEN)
    parts = [
        piece(name, shard, (f"tp * {INNER // 2}", 0), offset=n * rows // 2)
        for n, name in enumerate((GATE, UP))
    ]
    sliced = buffer(GATE_UP, "bf16", (INNER, HIDDEN), *parts, indices=LAYERS)
    assert_fine(TRAINER, manifest("receiver", dense_mlp(), [sliced], tp=(2, 1)))
