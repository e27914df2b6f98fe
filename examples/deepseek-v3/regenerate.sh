#!/bin/sh
# Write the manifests and the plan of this folder again.
set -e
cd "$(dirname "$0")"

tranship manifest --architecture deepseek_v3 --config config.json --layout megatron \
    --option world_size=256 --option pipeline_model_parallel_size=8 \
    --option expert_model_parallel_size=32 --option num_layers_in_first_pipeline_stage=7 \
    --option num_layers_in_last_pipeline_stage=6 \
    --output trainer.manifest.json

tranship manifest --architecture deepseek_v3 --config config.json --layout sglang \
    --option tp_size=16 --option ep_size=16 --option replicas=2 --quantization fp8-block128 \
    --output engine.manifest.json

tranship compile deepseek-v3.transfer.toml
