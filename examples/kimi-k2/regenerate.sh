#!/bin/sh
# Write the manifests and the plans of this folder again.
set -e
cd "$(dirname "$0")"

tranship manifest --architecture deepseek_v3 --config config.json --layout megatron \
    --option world_size=256 --option tensor_model_parallel_size=8 \
    --option pipeline_model_parallel_size=16 --option expert_model_parallel_size=16 \
    --option expert_tensor_parallel_size=1 --option num_layers_in_first_pipeline_stage=4 \
    --option num_layers_in_last_pipeline_stage=1 \
    --output trainer.manifest.json

tranship manifest --architecture deepseek_v3 --config config.json --layout sglang \
    --option tp_size=128 --option ep_size=128 --option dp_size=128 \
    --option enable_dp_attention=true --option moe_dense_tp_size=1 \
    --option moe_a2a_backend=deepep --quantization fp8-block128 \
    --output ep128.manifest.json

tranship manifest --architecture deepseek_v3 --config config.json --layout sglang \
    --option tp_size=16 --option ep_size=16 --option replicas=8 --quantization fp8-block128 \
    --output ep16.manifest.json

tranship compile ep128.transfer.toml
tranship compile ep16.transfer.toml
