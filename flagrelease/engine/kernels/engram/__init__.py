"""Triton kernels of DeepSeek-V4.1's Engram: hashing n-grams to rows of a table, fetching them, mixing them in."""
