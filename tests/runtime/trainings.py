"""What a trainer's ranks, processes of their own, and the test that starts them agree on.

A folder has their files: `RANK.json` is what a rank declares. `sender.json`, `receiver.json` and
`plan.json` are committed when all have declared.
"""

import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.runtime.session import Live, Sender
from tranship.runtime.transports.protocol import Transport
from tranship.schema.check import check_manifest
from tranship.schema.codec import dump, load
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.merge import merge
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.records import Declaration
from tranship.schema.transfer import Options

LIMIT = 120
"""Seconds after which processes that hang are ended; they take a few."""

VERSIONS = (1, 2)
"""What is published, in this order."""

DECLARED, COMPILED = "declared", "compiled"
"""Keys by which it is told that a rank's declaration (`-RANK` follows), and the plan, is there."""


@contextmanager
def errors_told(store: Store, side: Side, rank: int, folder: Path) -> Generator[None]:
    """Write down what a rank raises, as `SIDE-RANK.error`."""
    try:
        yield
    except Exception:
        text = traceback.format_exc()
        (folder / f"{side}-{rank}.error").write_text(text, encoding="utf-8")
        # Who waits for this rank goes on, and finds the file.
        store.set(f"{DECLARED}-{rank}", "no")


def check_errors(folder: Path) -> None:
    """Raise what ranks have raised."""
    errors = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)


def tell_declared(declared: Declaration, store: Store, rank: int, folder: Path) -> None:
    """Write what a rank has declared."""
    (folder / f"{rank}.json").write_bytes(dump(fold(declared)))
    store.set(f"{DECLARED}-{rank}", "yes")


def wait_declared(store: Store, ranks: int, folder: Path) -> Manifest:
    """Wait for all ranks of a trainer, and merge what they have declared."""
    store.wait([f"{DECLARED}-{rank}" for rank in range(ranks)], timedelta(seconds=LIMIT))
    check_errors(folder)
    return merged(folder, ranks)


def merged(folder: Path, ranks: int) -> Manifest:
    """Merge what all ranks of a folder have declared."""
    files = [folder / f"{rank}.json" for rank in range(ranks)]
    return merge([(file.name, load(file, Manifest).value) for file in files])


def verified_plan(
    sender: Manifest, receiver: Manifest, policy: Policy | None = None
) -> TransferPlan:
    """Check manifests, and compile and verify the plan between them."""
    assert check_manifest(sender, None) == check_manifest(receiver, None) == ()
    options = Options()
    plan = compile_transfer(sender, receiver, policy, options=options)
    named = digests_of(sender, receiver, policy, None, options)
    assert verify(plan, sender, receiver, policy, digests=named, options=options) == ()
    return plan


def commit(
    folder: Path, sender: Manifest, receiver: Manifest, policy: Policy | None = None
) -> TransferPlan:
    """Write both manifests and the verified plan."""
    plan = verified_plan(sender, receiver, policy)
    for name, document in (("sender", sender), ("receiver", receiver), ("plan", plan)):
        (folder / f"{name}.json").write_bytes(dump(document))
    return plan


def publish_versions(
    folder: Path, live: Live, end: Transport, rank: int, train: Callable[[int], None]
) -> None:
    """Send every version by the committed plan, as a trainer does after each step."""
    plan = load(folder / "plan.json", TransferPlan).value
    manifest = load(folder / "sender.json", Manifest).value
    session = Sender.bind(plan, manifest, live, end, rank)
    for version in VERSIONS:
        train(version)
        session.publish(version)
