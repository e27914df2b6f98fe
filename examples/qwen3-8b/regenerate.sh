#!/bin/sh
# Write the manifests and the plans of this folder again.
set -e
cd "$(dirname "$0")"

tranship manifest --architecture qwen3 --config config.json --layout fsdp \
    --option shard_size=8 \
    --output trainer.manifest.json

tranship manifest --architecture qwen3 --config config.json --layout fsdp \
    --option shard_size=24 \
    --output trainer24.manifest.json

tranship manifest --architecture qwen3 --config config.json --layout sglang \
    --option tp_size=2 --option replicas=4 --quantization fp8-block128 \
    --output engine.manifest.json

tranship compile qwen3-8b.transfer.toml
tranship compile fsdp24.transfer.toml
