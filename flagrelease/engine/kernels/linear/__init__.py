"""Triton kernels of dense products, embedding and addition."""
