"""What `engines.py` has left of a case."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tests.sglang.load import read_tensors
from tests.vllm.cases import Case
from tests.vllm.engines import CHECKPOINT, Memory
from tranship.runtime.frameworks.tracing.request import Answer
from tranship.schema.manifest import Manifest
from tranship.schema.merge import merge


@dataclass(frozen=True)
class Result:
    """A case, and the folder of its files."""

    case: Case
    folder: Path

    @property
    def config(self) -> str:
        """Path of config.json."""
        return str(self.folder / "config.json")

    def checkpoint(self) -> dict[str, Tensor]:
        """All tensors that were loaded."""
        return read_tensors(self.folder / CHECKPOINT)

    def answer(self, rank: int) -> Answer:
        """What became of the trace of a rank."""
        return Answer.model_validate_json((self.folder / f"{rank}.json").read_text())

    def manifest(self, rank: int) -> Manifest:
        """What the trace of a rank declares."""
        found = self.answer(rank)
        assert found.manifest is not None, found.findings
        return Manifest.model_validate_json(found.manifest)

    def merged(self) -> Manifest:
        """What the traces of all ranks declare."""
        return merge([(f"{rank}.json", self.manifest(rank)) for rank in range(self.case.tp)])

    def loaded(self, rank: int) -> dict[str, Tensor]:
        """What a rank holds after vLLM's own `load_weights`."""
        return read_tensors(self.folder / f"{rank}.safetensors")

    def derived(self, rank: int) -> dict[str, Memory]:
        """What a rank makes of its weights after loading them."""
        text = (self.folder / f"{rank}.derived").read_text()
        return {name: tuple(made) for name, made in json.loads(text).items()}

    def untouched(self, rank: int) -> set[str]:
        """Names of what loading has left as it was."""
        return set((self.folder / f"{rank}.untouched").read_text().splitlines())
