"""Find the device memory behind addresses, and what another process needs to map it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tranship.runtime.overlap import Span
from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.sharing.descriptors import allow_descriptors


@dataclass(frozen=True, slots=True)
class Piece:
    """What CUDA takes for one: an allocation of cudaMalloc, with a handle, or a mapped chunk.

    A chunk has a file descriptor, and an `identity` that no other memory of this process ever has.
    """

    base: int
    size: int
    handle: bytes | None
    identity: int = 0

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.base + self.size


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why memory cannot be shared: what it seems to be, and what to do."""

    memory: str
    advice: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Addresses of memory that cannot be shared, and why."""

    base: int
    end: int
    refusal: Refusal


ALLOCATE = "allocate the weights with PyTorch's default allocator or in a torch.cuda.MemPool"
_POOLED = Refusal("stream-ordered memory, as of cudaMallocAsync", ALLOCATE)
_SEALED = Refusal(
    "mapped memory made without a way to export it, as in a region of torch_memory_saver",
    f"keep the weights out of such a region: {ALLOCATE}",
)


def find_ranges(spans: Iterable[Span]) -> tuple[list[Span], list[Gap]]:
    """Find the allocations and chunks that `spans` lie in, by address, and what is in none.

    CUDA is asked once per allocation or chunk. Between the start of a span and the end of the last
    range all is known by then, since no earlier span starts later.
    """
    ranges: list[Span] = []
    gaps: list[Gap] = []
    known = 0
    for start, end in sorted(spans):
        known = max(known, start)
        while known < end:
            try:
                base, size = cuda_calls.address_range(known)
            except CudaError as error:
                gaps.append(Gap(known, end, _unknown(error)))
                known = end
            else:
                ranges.append((base, base + size))
                known = base + size
    return ranges, gaps


def export(ranges: Sequence[Span], descriptors: list[int]) -> tuple[list[Piece], list[Gap]]:
    """Export ranges one by one; the descriptors of chunks are appended to `descriptors`.

    Raises:
        OSError: more files would be open than this process may have.
    """
    allow_descriptors(len(ranges))
    pieces: list[Piece] = []
    gaps: list[Gap] = []
    for base, end in ranges:
        exported = _export_range(base, end - base, descriptors)
        if isinstance(exported, Piece):
            pieces.append(exported)
        else:
            gaps.append(Gap(base, end, exported))
    return pieces, gaps


def join(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Put successive chunks together: they are mapped back to back."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1][-1] if runs else None
        chunks = last is not None and last.handle is None and piece.handle is None
        if last is not None and chunks and last.end == piece.base:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _export_range(base: int, size: int, descriptors: list[int]) -> Piece | Refusal:
    try:
        return Piece(base, size, cuda_calls.get_ipc_handle(base))
    except CudaError as error:
        if _is_pooled(base):
            return _POOLED
        return _export_chunk(base, size, descriptors, error)


def _export_chunk(
    base: int, size: int, descriptors: list[int], no_handle: CudaError
) -> Piece | Refusal:
    try:
        chunk = cuda_calls.retain_handle(base)
    except CudaError:
        return _unknown(no_handle)
    try:
        descriptors.append(cuda_calls.export_descriptor(chunk))
    except CudaError:
        return _SEALED
    finally:
        cuda_calls.release_handle(chunk)
    return Piece(base, size, None, cuda_calls.buffer_id(base))


def _is_pooled(address: int) -> bool:
    try:
        return cuda_calls.is_pooled(address)
    except CudaError:
        return False


def _unknown(error: CudaError) -> Refusal:
    return Refusal(f"memory of an unknown kind ({error})", ALLOCATE)
