"""The order in which FP4 codes are kept for the matrix unit, against the table that states it."""

from __future__ import annotations

import torch

from flagrelease.engine.kernels.fp4_codes import arrange

# From the table in `fp4_codes`: what each bit of a half word holds, bit 15 first; e is the exponent's upper bit.
TABLE = ["s0", "s3", "m3", "s1", "e3", "f3", "s2", "e0", "f0", "m0", "e1", "f1", "m1", "e2", "f2", "m2"]
BIT_OF_CODE = {"s": 3, "e": 2, "f": 1, "m": 0}


def test_every_bit_goes_where_the_table_says(device: torch.device) -> None:
    both = torch.randint(256, (3, 2, 5, 64), dtype=torch.uint8)  # w1 and w3 of three experts, side by side
    ordered = both.clone().to(device)
    for weights in ordered.unbind(1):
        arrange(weights)
    codes = torch.stack((both & 15, both >> 4), -1).flatten(-2).unflatten(-1, (-1, 4)).int()  # fours, in column order
    expected = torch.zeros(codes.shape[:-1], dtype=torch.int32)
    for place, what in enumerate(TABLE):
        expected |= ((codes[..., int(what[1])] >> BIT_OF_CODE[what[0]]) & 1) << (15 - place)
    assert torch.equal(ordered.cpu().view(torch.int16).int() & 0xFFFF, expected)


def test_the_order_loses_nothing(device: torch.device) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.uint8).view(1, 256, 512).to(device)
    arrange(every)
    assert len(torch.unique(every.cpu().view(torch.int16))) == 65536
