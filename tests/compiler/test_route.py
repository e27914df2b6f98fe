"""Nearest holders are chosen where some are nearer, and the time bound is that of the links."""

import pytest

from tests.mutants.cases import copies
from tranship.cli import summary
from tranship.cli.summary import summarize
from tranship.compiler.pipeline import compile_transfer
from tranship.schema.placement import Links, Placement, Seat

LINKS = Links(device_gb_per_s=1500.0, host_gb_per_s=450.0, network_gb_per_s=50.0)


def placement(receiver_host: str) -> Placement:
    return Placement(
        format="tranship.placement/1",
        sender=Seat(host="rank // 2", device="rank % 2"),
        receiver=Seat(host=receiver_host, device="rank % 2"),
        links=LINKS,
    )


@pytest.mark.parametrize(("receiver_host", "near"), [("rank // 2", True), ("rank // 2 + 2", False)])
def test_a_plan_names_the_nearest_holder_only_where_one_is_nearer(
    receiver_host: str, near: bool
) -> None:
    case = copies()
    plan = compile_transfer(case.sender, case.receiver, placement=placement(receiver_host))
    assert {edge.nearest for edge in plan.edges} == {near}


def test_the_bound_without_a_shared_host_is_that_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, apart = copies(), placement("rank // 2 + 2")
    plan = compile_transfer(case.sender, case.receiver, placement=apart)
    by_rank = summarize(plan, apart).bound

    def always(placement: Placement, senders: int, receivers: int) -> bool:
        return bool(placement and senders and receivers)

    monkeypatch.setattr(summary, "share_hosts", always)
    assert by_rank is not None
    assert by_rank == summarize(plan, apart).bound
    assert by_rank.link == "network"
