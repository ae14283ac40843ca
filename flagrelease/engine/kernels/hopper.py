"""Sizes of the chip that tiles were tuned on (H100, H200); elsewhere only speed depends on them."""

MULTIPROCESSORS = 132
FILLED = 128  # programs that keep it busy
SHARED_MEMORY = 227 * 1024  # bytes that the programs on one may take together
