"""Steps in which receivers read the senders' memory themselves, in plain torch."""

import torch

from tests.runtime.small_plans import Buffers, bound
from tranship.runtime.direct import direct
from tranship.runtime.execute import Memory, run_fills, run_jobs
from tranship.runtime.program import Program, program
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan


def senders_of(plan: TransferPlan) -> list[Program]:
    """Expand the programs of all senders."""
    return [program(plan, Side.SENDER, rank) for rank in range(plan.sender.world_size)]


def step_directly(plan: TransferPlan, sender: Buffers, receiver: Buffers) -> None:
    """Write the buffers of all receivers."""
    senders = senders_of(plan)
    sources = [tensor for own in senders for tensor in bound(own.buffers, sender[own.rank])]
    for rank, held in receiver.items():
        own = program(plan, Side.RECEIVER, rank)
        joined = direct(own, senders)
        buffers = [*bound(own.buffers, held), *sources]
        memory = Memory(buffers, torch.zeros(joined.scratch_bytes, dtype=torch.uint8))
        run_fills(own, buffers)
        for batch in (joined.before, joined.batch):
            run_jobs(batch.jobs, batch.fragments, memory)
