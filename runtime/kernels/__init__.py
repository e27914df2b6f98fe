"""Triton kernels that run the jobs of a program from tables, and what binds them to memory."""
