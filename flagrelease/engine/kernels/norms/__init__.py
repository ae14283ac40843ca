"""Triton kernels of RMSNorm and of the hyper-connections (mHC)."""
