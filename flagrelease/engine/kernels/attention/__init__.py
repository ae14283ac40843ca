"""Triton kernels of attention: RoPE, compressed entries, the indexer, sparse and decoding attention."""
