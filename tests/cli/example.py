"""A small transfer with something of everything: what the tests of the command line run on."""

from pathlib import Path

from tranship.schema.codec import dump
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    MANIFEST_FORMAT,
    Axis,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Fill,
    Framework,
    Kind,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)

LAYERS = {"layer": "0..3"}
EXPERTS = {"layer": "0..3", "expert": "0..3"}
MLP = "model.layers.{layer}.mlp"

TENSORS = (
    TensorFamily(name=f"{MLP}.gate_proj.weight", indices=LAYERS, shape=(256, 256)),
    TensorFamily(name=f"{MLP}.up_proj.weight", indices=LAYERS, shape=(256, 256)),
    TensorFamily(
        name=f"{MLP}.experts.{{expert}}.down_proj.weight", indices=EXPERTS, shape=(256, 128)
    ),
    TensorFamily(name="model.layers.{layer}.input_layernorm.weight", indices=LAYERS, shape=(256,)),
    TensorFamily(name="model.embed_tokens.weight", shape=(510, 256)),
)
MTP = TensorFamily(name="mtp.norm.weight", shape=(256,))

TRANSFER = """\
# A trainer of two ranks, and an engine of two.
format = "tranship.transfer/1"
sender = "trainer.manifest.json"
receiver = "engine.manifest.json"
policy = "policy.json"
placement = "placement.toml"

[options]
staging_bytes = 4194304
"""

POLICY = """\
{
  "format": "tranship.policy/1",
  "allow": [
    {
      "edge": "cast",
      "tensors": "model.embed_tokens.weight",
      "sender_dtype": "f32",
      "receiver_dtype": "bf16",
      "reason": "the engine looks its embeddings up in BF16"
    }
  ],
  "unused": [{"tensors": "mtp.*", "reason": "the engine decodes without the draft layers"}]
}
"""

PLACEMENT = """\
format = "tranship.placement/1"
sender = { host = 0, device = "rank" }
receiver = { host = 0, device = "rank + 1" }

[links]
device_gb_per_s = 2000
host_gb_per_s = 400
network_gb_per_s = 50
"""


def shard(tensor: TensorFamily, dtype: DType = DType.BF16) -> BufferFamily:
    """One of two shards of dim 0."""
    rows, *rest = tensor.shape
    start = ("fsdp * " + str(rows // 2), *(0 for _ in rest))
    shape = (rows // 2, *rest)
    return BufferFamily(
        name=tensor.name,
        indices=tensor.indices,
        dtype=dtype,
        shape=shape,
        pieces=(Piece(tensor=tensor.name, start=start, extent=shape),),
    )


def trainer() -> Manifest:
    """Two FSDP ranks."""
    return Manifest(
        format=MANIFEST_FORMAT,
        side=Side.SENDER,
        framework=Framework(name="fsdp2"),
        world_size=2,
        axes=(Axis(name="fsdp", size=2, stride=1),),
        tensors=(*TENSORS, MTP),
        buffers=(
            *(shard(tensor) for tensor in TENSORS[:-1]),
            shard(TENSORS[-1], DType.F32),
            shard(MTP),
        ),
    )


def gate_up() -> tuple[BufferFamily, BufferFamily]:
    """Gate and up projection stacked, in FP8; each rank has half of the rows of both."""
    weight, scale = f"{MLP}.gate_up_proj.weight", f"{MLP}.gate_up_proj.weight_scale_inv"
    names = [tensor.name for tensor in TENSORS[:2]]
    return (
        BufferFamily(
            name=weight,
            indices=LAYERS,
            dtype=DType.F8E4M3FN,
            shape=(256, 256),
            encoding=Scaled(kind="scaled", block=(128, 128), scale=scale),
            pieces=tuple(
                Piece(
                    tensor=name, start=("tp * 128", 0), extent=(128, 256), offset=number * 128 * 256
                )
                for number, name in enumerate(names)
            ),
        ),
        BufferFamily(
            name=scale,
            indices=LAYERS,
            dtype=DType.F32,
            shape=(2, 2),
            encoding=Scale(kind="scale", of=weight),
            pieces=tuple(
                Piece(
                    tensor=name,
                    part=Part.SCALE,
                    start=("tp", 0),
                    extent=(1, 2),
                    offset=number * 2,
                )
                for number, name in enumerate(names)
            ),
        ),
    )


def experts() -> BufferFamily:
    """Two of the four experts stacked on each rank."""
    return BufferFamily(
        name=f"{MLP}.experts.w2_weight",
        indices=LAYERS,
        dtype=DType.BF16,
        shape=(2, 256, 128),
        pieces=(
            Piece(
                tensor=TENSORS[2].name,
                indices={"expert": "0..3"},
                at={"tp": "expert // 2"},
                start=(0, 0),
                extent=(256, 128),
                offset="expert % 2 * 32768",
                strides=(128, 1),
            ),
        ),
    )


def engine() -> Manifest:
    """Two tensor parallel ranks, with padding, a derived buffer and one that no update changes."""
    norm, embedding = TENSORS[3], TENSORS[4]
    return Manifest(
        format=MANIFEST_FORMAT,
        side=Side.RECEIVER,
        framework=Framework(name="sglang", version="0.5.23"),
        world_size=2,
        axes=(Axis(name="tp", size=2, stride=1),),
        tensors=TENSORS,
        buffers=(
            *gate_up(),
            experts(),
            BufferFamily(
                name=norm.name,
                indices=LAYERS,
                dtype=DType.BF16,
                shape=(256,),
                pieces=(Piece(tensor=norm.name, start=(0,), extent=(256,)),),
            ),
            BufferFamily(
                name=embedding.name,
                dtype=DType.BF16,
                shape=(256, 256),
                pieces=(
                    Piece(
                        tensor=embedding.name,
                        start=("tp * 256", 0),
                        extent=("256 - tp * 2", 256),
                    ),
                ),
                fills=(
                    Fill(at={"tp": 1}, offset=254 * 256, sizes=(2, 256), strides=(256, 1), value=0),
                ),
            ),
            BufferFamily(
                name="model.layers.{layer}.norm_sum",
                indices=LAYERS,
                dtype=DType.F32,
                shape=(1,),
                kind=Kind.ATTRIBUTE,
                role=Derived(kind="derived", recipe="sum", inputs=(norm.name,)),
            ),
            BufferFamily(
                name="rotary.inv_freq",
                dtype=DType.F32,
                shape=(64,),
                kind=Kind.BUFFER,
                role=ConstantBuffer(kind="constant", reason="fixed by the head size"),
            ),
        ),
    )


def write_example(folder: Path) -> None:
    """Write the transfer file and all that it names, but no plan."""
    (folder / "trainer.manifest.json").write_bytes(dump(trainer()))
    (folder / "engine.manifest.json").write_bytes(dump(engine()))
    (folder / "policy.json").write_text(POLICY)
    (folder / "placement.toml").write_text(PLACEMENT)
    (folder / "small.transfer.toml").write_text(TRANSFER)
