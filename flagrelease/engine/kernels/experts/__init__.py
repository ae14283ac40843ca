"""Triton kernels of the router and the routed experts."""
