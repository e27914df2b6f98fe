"""Declare what a rank of a live Megatron-core model holds.

Megatron's own `sharded_state_dict` tells which box of which whole tensor a rank's tensor is; a
manifest of the whole model on one rank tells which logical tensors lie where in the whole one. What
a rank holds of which logical tensor is the intersection of the two, whatever the model.
"""
