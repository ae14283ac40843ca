"""The look-up on an accelerator, for machines whose CPU is slower than the way to the device and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.lookup import Index
from flagrelease.convert.codecs.tables import Tables
from flagrelease.device import Device


class DeviceLookup:
    """`Lookup` on a torch device. Bits equal `cpu_lookup`'s: it gathers the same table entries."""

    def __init__(self, device: Device) -> None:
        """Use `device` for every call."""
        self._device = torch.device(device.torch_device)

    def __call__(self, codes: U8, index: Index, block: tuple[int, int], tables: Tables, out: NDArray[Any]) -> None:
        """See `flagrelease.convert.codecs.lookup.Lookup`."""
        rows, columns = block
        signed = np.dtype(f"i{tables.entries.itemsize}")
        entries = torch.from_numpy(tables.entries.view(signed)).to(self._device)
        table = torch.from_numpy(index.astype(np.int32)).to(self._device)
        of_row = table.repeat_interleave(rows, 0)[: codes.shape[0]]
        of_code = of_row.repeat_interleave(columns, 1)[:, : codes.shape[1]]
        code = torch.from_numpy(codes).to(self._device)
        found = entries.flatten()[of_code.long() * 256 + code.long()]
        np.copyto(out, found.cpu().numpy().view(out.dtype))
