"""Bind a verified TransferPlan to live buffers and replay it after every training step."""
