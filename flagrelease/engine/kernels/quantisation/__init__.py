"""Triton kernels that round activations to FP8 and FP4, and the codes of both."""
