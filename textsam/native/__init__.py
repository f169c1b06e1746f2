"""Compiled kernels for the CPU: built on first use, never needed."""
