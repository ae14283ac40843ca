"""Where Triton kernels run in this process: in Triton's CPU interpreter, or on the GPU of a machine that has one.

Triton reads the choice when it is imported, and so do the kernels' modules; so it is made before any test imports them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; flagrelease/cli.py says why

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
