"""Rounds fit the staging memory, keep blocks together, and let all stages send."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compiler.large_pairs import large_pairs
from tests.compiler.verdicts import Transfer
from tests.mutants.declare import manifest, plain, scaled
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.schedule import SLOTS
from tranship.compiler.verify import digests_of, verify
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.manifest import BufferFamily, Manifest, Piece, Side, TensorFamily
from tranship.schema.moves import edge_moves
from tranship.schema.plan import TransferPlan
from tranship.schema.testing import Limits, transfers
from tranship.schema.testing.transfers import RandomTransfer
from tranship.schema.transfer import Options
from tranship.schema.wire import ALIGNMENT, Message, pack_messages

modest = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
budgets = st.integers(16, 128).map(lambda blocks: blocks * 256)


def _capacity(options: Options) -> int:
    """Bytes of one round on one rank."""
    return options.staging_bytes // SLOTS // ALIGNMENT * ALIGNMENT


def _messages(plan: TransferPlan) -> tuple[Message, ...]:
    moves = [edge_moves(plan, number) for number in range(len(plan.edges))]
    return pack_messages(plan.edges, moves)[1]


def _loads(plan: TransferPlan) -> dict[tuple[Side, int], dict[int, int]]:
    """Bytes of every rank by round."""
    found: dict[tuple[Side, int], dict[int, int]] = {}
    for message in _messages(plan):
        for side, rank in ((Side.SENDER, message.sender), (Side.RECEIVER, message.receiver)):
            rounds = found.setdefault((side, rank), {})
            rounds[message.round] = rounds.get(message.round, 0) + message.size
    return found


def _most(plan: TransferPlan) -> int:
    """The most that one rank stages in one round."""
    return max((max(rounds.values()) for rounds in _loads(plan).values()), default=0)


@settings(modest, max_examples=80)
@given(drawn=large_pairs() | transfers(Limits(ranks=8, layers=5)), budget=budgets)
def test_every_round_fits_and_keeps_blocks_whole(
    drawn: Transfer | RandomTransfer, budget: int
) -> None:
    options = drawn.options.model_copy(update={"staging_bytes": budget})
    inputs = (drawn.sender, drawn.receiver, drawn.policy, drawn.placement)
    try:
        plan = compile_transfer(*inputs, options=options)
    except DiagnosticError as error:
        if {found.code for found in error.diagnostics} != {"TS501"}:
            raise
        plenty = options.model_copy(update={"staging_bytes": 1 << 30})
        plan = compile_transfer(*inputs, options=plenty)
        # What would fit in one round is never refused.
        assert _most(plan) > _capacity(options)
        return
    assert _most(plan) <= _capacity(options)
    assert {message.round for message in _messages(plan)} <= set(range(len(plan.rounds)))
    assert verify(plan, *inputs, digests=digests_of(*inputs, options), options=options) == ()


@settings(modest, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.sampled_from([None, (8, 8), (32, 16), (64, 64)]),
    budget=budgets,
)
def test_a_tensor_is_refused_only_if_no_window_of_it_fits(
    rows: int, columns: int, block: tuple[int, int] | None, budget: int
) -> None:
    """Either in rows or in columns, of whole blocks."""
    shape = (rows * 64, columns * 64)
    sender = manifest(Side.SENDER, 1, {}, _one(shape), (plain("w", DType.BF16, shape, (0, 0)),))
    counts = [-(-size // width) for size, width in zip(shape, block or (1, 1), strict=True)]
    buffers = (
        (plain("w", DType.BF16, shape, (0, 0)),)
        if block is None
        else scaled("w", shape, (0, 0), block, (counts[0], counts[1]), (0, 0))
    )
    receiver = manifest(Side.RECEIVER, 1, {}, _one(shape), buffers)
    options = Options(staging_bytes=budget)
    width, height = block or (1, 1)
    item = 2 if block is None else 1
    least = min(
        _padded(width * shape[1] * item) + (_padded(4 * counts[1]) if block else 0),
        _padded(height * shape[0] * item) + (_padded(4 * counts[0]) if block else 0),
    )
    try:
        plan = compile_transfer(sender, receiver, options=options)
    except DiagnosticError as error:
        if {found.code for found in error.diagnostics} != {"TS501"}:
            raise
        assert least > _capacity(options)
        return
    assert _most(plan) <= _capacity(options)
    assert least <= _capacity(options)


def _one(shape: tuple[int, int]) -> tuple[TensorFamily, ...]:
    return (TensorFamily(name="w", shape=shape),)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _uniform(layers: int, stages: int, experts: int, items: int) -> tuple[Manifest, Manifest]:
    """Layers of equal stages, with one tensor or with experts, for two ranks that take it all."""
    indices = {"layer": f"0..{layers - 1}"}
    name = "w.{layer}"
    if experts:
        indices["expert"] = f"0..{experts - 1}"
        name = "w.{layer}.{expert}"
    tensors = (TensorFamily(name=name, indices=indices, shape=(items,)),)
    piece = Piece(tensor=name, start=(0,), extent=(items,))
    common = {"name": name, "indices": indices, "dtype": DType.BF16, "shape": (items,)}
    held = {**common, "at": {"pp": f"layer // {layers // stages}"}, "pieces": (piece,)}
    wanted = {**common, "pieces": (piece,)}
    return (
        manifest(
            Side.SENDER,
            stages,
            {"pp": (stages, 1)},
            tensors,
            (BufferFamily.model_validate(held),),
        ),
        manifest(Side.RECEIVER, 2, {"tp": (2, 1)}, tensors, (BufferFamily.model_validate(wanted),)),
    )


@settings(modest, max_examples=60)
@given(
    stages=st.sampled_from([1, 2, 3, 4, 6]),
    per_stage=st.integers(1, 6),
    experts=st.sampled_from([0, 0, 4, 7, 12]),
    blocks=st.integers(1, 12),
    budget=budgets,
)
def test_uniform_layers_come_in_few_rounds_from_all_stages(
    stages: int, per_stage: int, experts: int, blocks: int, budget: int
) -> None:
    manifests = _uniform(stages * per_stage, stages, experts, blocks * 64)
    options = Options(staging_bytes=budget)
    plan = compile_transfer(*manifests, options=options)
    capacity = _capacity(options)
    loads = _loads(plan)
    bound = max(-(-sum(rounds.values()) // capacity) for rounds in loads.values())
    assert len(plan.rounds) <= 2 * bound + 4
    # A round has room for as many pieces; with fewer than stages, not all can have a part in it.
    room = capacity // (blocks * 128)
    if room >= stages and len(plan.rounds) > 1:
        senders = [
            sum(number in loads[Side.SENDER, rank] for rank in range(stages))
            for number in range(len(plan.rounds))
        ]
        assert sum(count == stages for count in senders) >= 0.7 * len(senders) - 2, senders
