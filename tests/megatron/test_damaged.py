"""Whatever is changed of a live model is found when it is declared, checked or bound."""

import json

import pytest

from tests.megatron import damages
from tests.megatron.damages import ATTENTION, EXPERT
from tests.megatron.launch import context_and_store
from tests.megatron.missing import needs_megatron

pytestmark = needs_megatron

LIMIT = 120
"""Seconds after which a process that hangs is ended."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What was said about each damage, by its name and when it was done."""
    folder = tmp_path_factory.mktemp("damages")
    context, store = context_and_store()
    process = context.Process(target=damages.main, args=(store.port, str(folder)))
    process.start()
    process.join(LIMIT)
    process.kill()
    assert process.exitcode == 0
    return json.loads((folder / "said.json").read_text(encoding="utf-8"))


FC1, FC2 = f"{EXPERT}.linear_fc1.weight", f"{EXPERT}.linear_fc2.weight"
WHOLE = "decoder.layers.2.mlp.experts.linear_fc2.weight3"
PROJECTION = f"{ATTENTION}.linear_proj.weight"


@pytest.mark.parametrize(
    ("damage", "code", "names"),
    [
        ("rename before", "TS860", (f"{ATTENTION}.linear_out.weight", PROJECTION)),
        ("drop before", "TS188", ("model.layers.2.mlp.experts.3.down_proj.weight",)),
        ("transpose before", "TS861", (FC2, WHOLE, "[24, 32]", "[32, 24]")),
        ("retype before", "TS402", ("experts.{expert}.down_proj.weight", "from f16 to bf16")),
        ("complicate before", "TS863", (FC2, "complex64")),
        ("forget before", "TS862", (FC2,)),
        ("copy before", "TS862", (FC1,)),
        ("add before", "TS860", ("scorer.weight",)),
        ("scale_rows before", "TS867", (FC1, "Float8BlockwiseQTensor")),
        ("cut_blocks before", "TS865", (FC1, "128 x 128")),
        ("rename after", "TS800", (PROJECTION, f"{ATTENTION}.linear_out.weight")),
        ("drop after", "TS800", (FC2,)),
        ("transpose after", "TS804", (FC2,)),
        ("retype after", "TS803", (FC2,)),
        ("complicate after", "TS803", (FC2,)),
    ],
)
def test_one_changed_tensor_is_reported_by_its_name(
    said: dict[str, list[str]], damage: str, code: str, names: tuple[str, ...]
) -> None:
    message = said[damage][0]
    assert message.startswith(code)
    assert all(name in message for name in names)


@pytest.mark.parametrize(
    ("whole", "code", "tensor", "count"),
    [
        ("more rows than padded", "TS861", "output_layer.weight", 2),
        ("fewer layers", "TS861", "decoder.layers.3.mlp.router.weight", 4 * 15),
        ("more experts", "TS861", "decoder.layers.0.mlp.router.weight", 4 * 9),
        ("other groups", "TS861", "decoder.layers.1.self_attention.linear_qkv.weight", 4),
        ("of two ranks", "TS866", "", 1),
        ("columns first", "TS866", "decoder.layers.3.mlp.router.weight", 4),
        ("without values", "TS864", "decoder.layers.3.self_attention.linear_qkv.weight", 4),
        ("endings", "TS866", "no name ends in 'b'", 1),
    ],
)
def test_another_model_than_the_live_one_is_refused(
    said: dict[str, list[str]], whole: str, code: str, tensor: str, count: int
) -> None:
    assert len(said[whole]) == count
    assert all(message.startswith(code) for message in said[whole])
    assert any(tensor in message for message in said[whole])


def test_names_of_a_users_own_are_told_by_their_ends(said: dict[str, list[str]]) -> None:
    assert said["renamed by an ending"] == []


def test_modules_of_which_nothing_is_sent_are_left_out(said: dict[str, list[str]]) -> None:
    assert said["left out"] == []


def test_codes_are_watched_like_any_memory(said: dict[str, list[str]]) -> None:
    name = f"{ATTENTION}.linear_proj._rowwise_data.weight"
    assert said["moved"] == [f"TS810: {name!r} is not the memory that was bound"]
