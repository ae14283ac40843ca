"""The order in which FP4 codes are kept for the matrix unit, against the table that states it."""

from __future__ import annotations

import torch

from flagrelease.engine.kernels.quantisation.fp4_codes import arrange

# From the table in `fp4_codes`: what each bit of a byte holds, bit 7 first: a column, and the bit of its code s ee m.
TABLE = [("X", 3), ("Y", 2), ("Y", 3), ("X", 2), ("X", 1), ("X", 0), ("Y", 1), ("Y", 0)]


def test_every_bit_goes_where_the_table_says(device: torch.device) -> None:
    both = torch.randint(256, (3, 2, 5, 256), dtype=torch.uint8)  # w1 and w3 of three experts, side by side
    ordered = both.clone().to(device)
    for weights in ordered.unbind(1):
        arrange(weights)
    codes = torch.stack((both & 15, both >> 4), -1).flatten(-2).int()  # in column order
    actual = ordered.cpu().int()
    for block in range(2):
        for q in range(8):
            for i in range(4):
                for b in range(4):
                    x = 256 * block + 64 * i + 4 * q + b
                    expected = torch.zeros_like(codes[..., 0])
                    for place, (column, bit) in enumerate(TABLE):
                        code = codes[..., x + 32 * (column == "Y")]
                        expected |= ((code >> bit) & 1) << (7 - place)
                    assert torch.equal(actual[..., 128 * block + 4 * (4 * q + i) + b], expected)


def test_the_order_loses_nothing(device: torch.device) -> None:
    one_bit_each = (2 ** torch.arange(8, dtype=torch.int32)).to(torch.uint8)
    rows = torch.zeros(128, 8, 128, dtype=torch.uint8)  # each of a block's 1,024 bits alone
    for byte in range(128):
        rows[byte, :, byte] = one_bit_each
    ordered = rows.view(1, 1024, 128).to(device)
    arrange(ordered)
    assert torch.equal(torch.unique(ordered.cpu()[0], dim=0).sum(0, dtype=torch.int32), torch.full((128,), 255))
