"""DeepSeek-V4.1 as a family."""

from __future__ import annotations

from flagrelease.formats.releases import ReleaseFormatName
from flagrelease.model.family import Family, SequenceCaches
from flagrelease.model.unfit import hint_of_transformers
from flagrelease.model.v4.cache_size import sequence_lengths
from flagrelease.model.v41.cache_size import longest_context, sequence_bytes
from flagrelease.model.v41.config import V41Config, parse_config
from flagrelease.model.v41.drafts import without_drafts
from flagrelease.model.v41.efforts import efforts_of
from flagrelease.model.v41.inventory import inventory
from flagrelease.model.v41.native import native_arguments
from flagrelease.model.v41.published import NAMES, published_names
from flagrelease.model.v41.unfit import reasons


def _caches(config: V41Config, release: ReleaseFormatName) -> SequenceCaches:
    sizes = {length: sequence_bytes(config, length) for length in sequence_lengths(config)}
    return SequenceCaches(sizes, lambda memory: longest_context(config, memory))


V41 = Family[V41Config](
    model_type="deepseek_v41",
    parse=parse_config,
    inventory=inventory,
    native_arguments=native_arguments,
    without_drafts=without_drafts,
    published=published_names,
    names=NAMES,
    title="DeepSeek-V4.1",
    mp_readers="flagrelease's engine and DeepSeek's own program",
    # No stack is known that loads V4.1 from the other formats as flagrelease writes them.
    formats=frozenset({"native", "fp8", "fp8-e8m0", "bf16"}),
    reasons=reasons,
    hint=hint_of_transformers,
    native_scale_fmt=False,
    repack_tile=(32, 32),
    attention={0: "sliding window", 1: "shared keys of every token", 2: "shared keys of two tokens"},
    caches=_caches,
    efforts=lambda *_: efforts_of(),
    runs_drafts=False,
)
