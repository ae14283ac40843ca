"""What ranks tell each other on the CPU: bytes, which the receiver reads as JSON. Nothing received is unpickled."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from flagrelease.engine.collectives import all_gather, broadcast

_FRAME = 4096  # bytes of a broadcast: the message's length and its beginning, which is the whole of most orders
_LENGTH = 8  # bytes of the length, little-endian
# gloo gives up a receive after 30 minutes by default, and so would the ranks of a server that nobody asks for as long.
# A rank that dies closes its connections, which the others notice at once.
_PATIENCE = timedelta(days=3650)


def open_control() -> dist.ProcessGroup | None:
    """A group of all ranks on the CPU, for what they tell each other; None outside a job. All ranks must call it."""
    if not dist.is_initialized():
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return group


def broadcast_bytes(control: dist.ProcessGroup, message: bytes = b"") -> bytes:
    """The first rank's `message` on every rank; what the others hand in does not count."""
    leads = dist.get_rank(control) == 0
    beginning = len(message).to_bytes(_LENGTH, "little") + message[: _FRAME - _LENGTH] if leads else b""
    frame = torch.frombuffer(bytearray(beginning.ljust(_FRAME, b"\0")), dtype=torch.uint8)
    broadcast(frame, control)
    received = frame.numpy().tobytes()
    length = int.from_bytes(received[:_LENGTH], "little")
    beginning = received[_LENGTH : _LENGTH + length]
    if length == len(beginning):
        return beginning
    rest = bytearray(message[len(beginning) :] if leads else length - len(beginning))
    broadcast(torch.frombuffer(rest, dtype=torch.uint8), control)
    return beginning + bytes(rest)


def gather_bytes(control: dist.ProcessGroup, message: bytes) -> list[bytes]:
    """Every rank's `message`, in the order of ranks."""
    ranks = dist.get_world_size(control)
    length = torch.tensor([len(message)], dtype=torch.int64)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
    all_gather(lengths, length, control)
    longest = max(int(each) for each in lengths)
    padded = torch.frombuffer(bytearray(message.ljust(longest, b"\0")), dtype=torch.uint8)
    gathered = [torch.empty(longest, dtype=torch.uint8) for _ in range(ranks)]
    all_gather(gathered, padded, control)
    return [bytes(each.numpy()[: int(size)]) for each, size in zip(gathered, lengths, strict=True)]
