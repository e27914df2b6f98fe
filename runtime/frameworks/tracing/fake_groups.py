"""Process groups without other members: a process is one rank of many, alone."""

import importlib
from typing import Any


def join_fake_groups(rank: int, world_size: int) -> None:
    """Join a world by torch's fake backend, and let all groups that follow be such."""
    distributed: Any = importlib.import_module("torch.distributed")
    importlib.import_module("torch.testing._internal.distributed.fake_pg")  # registers the backend
    store = distributed.HashStore()
    distributed.init_process_group("fake", store=store, rank=rank, world_size=world_size)
    new_group = distributed.new_group

    def new_fake_group(ranks: list[int], **options: Any) -> Any:
        return new_group(ranks, backend="fake", group_desc=options.get("group_desc"))

    distributed.new_group = new_fake_group
