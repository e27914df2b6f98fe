#!/bin/sh
# Write the manifests and the plan of this folder again.
set -e
cd "$(dirname "$0")"

tranship manifest --architecture qwen3_moe --config config.json --layout megatron \
    --option world_size=16 --option tensor_model_parallel_size=2 \
    --option pipeline_model_parallel_size=2 --option expert_model_parallel_size=4 \
    --option expert_tensor_parallel_size=1 \
    --output trainer.manifest.json

tranship manifest --architecture qwen3_moe --config config.json --layout sglang \
    --option tp_size=4 --option ep_size=4 --option replicas=2 --quantization fp8-block128 \
    --output engine.manifest.json

tranship compile qwen3-30b-a3b.transfer.toml
