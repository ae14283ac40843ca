"""Tensors whose stored bytes are all zero: a cut download or a lost disk block, not weights.

A damaged source is otherwise converted, proved and published, because the native model and the port share the damage.

The rule holds where a trained tensor cannot be zero: quantised weights, their scales in any dtype (F32, F16 and BF16
zeros make the whole weight zero, an E8M0 byte of 0 is 2^-127) and BF16 matrices. Biases, sinks, norms, ape, hc vectors
and tables of expert ids are left out: they begin as zeros in training, may stay so, and a damaged file rarely spoils
only those.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from flagrelease.convert.codecs.decoder import U8
from flagrelease.errors import CheckpointError
from flagrelease.model.stored import StoredWeight
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.shard.header import TensorMeta

_GLANCE_BYTES = 256  # one of these is rarely zero, so nearly every tensor costs one glance and no pass


def must_hold_values(tensor: StoredWeight) -> bool:
    """Whether all-zero bytes of this weight (and its scale, if it has one) are damage."""
    return tensor.format is not None or (tensor.weight.dtype == "BF16" and len(tensor.weight.shape) == 2)


def is_zero(data: U8) -> bool:
    """Whether all bytes are zero."""
    return not data[:_GLANCE_BYTES].any() and not data.any()


def refuse_zero(stored: TensorMeta, options: ConvertSpec) -> None:
    """Refuse a stored tensor that was found to be all zero, unless the recipe allows it.

    Raises:
        CheckpointError: no pattern of `convert.allow_zero_tensors` matches its name.
    """
    if not any(fnmatchcase(stored.name, pattern) for pattern in options.allow_zero_tensors):
        layer, _, rest = stored.name.partition(".experts.")
        whose = f" (expert {rest.partition('.')[0]} of {layer})" if rest else ""
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name!r}{whose}: all {stored.nbytes:,} stored bytes are zero: the file is "
            f"damaged, download it again; if the model is meant to be so, name the tensor in the recipe under "
            f"convert: allow_zero_tensors"
        )
