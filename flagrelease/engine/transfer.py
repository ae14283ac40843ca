"""Numbers on their way to a device, without waiting for the work that is queued there."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, place: torch.device) -> Tensor:
    """Copy `values` from the host to `place`, behind what is queued there. The caller goes on at once.

    From pageable memory the copy would wait until all that is queued is done; pinned memory is not given out again
    before the copy is.
    """
    return values if place.type == "cpu" else values.pin_memory().to(place, non_blocking=True)
