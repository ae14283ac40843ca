"""The decoder of every stored format that convert reads, by the format's name."""

from __future__ import annotations

from flagrelease.convert.codecs.fp4 import FP4_DECODER
from flagrelease.convert.codecs.fp8 import FP8_DECODER, FP8_GROUP_DECODER

DECODERS = {decoder.name: decoder for decoder in (FP8_DECODER, FP8_GROUP_DECODER, FP4_DECODER)}
