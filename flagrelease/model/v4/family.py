"""DeepSeek-V4 as a family."""

from __future__ import annotations

from flagrelease.formats.releases import RELEASE_FORMATS, ReleaseFormatName
from flagrelease.model.drafts import without_drafts
from flagrelease.model.family import Family, SequenceCaches
from flagrelease.model.v4.cache_size import longest_context, sequence_bytes, sequence_lengths
from flagrelease.model.v4.config import ModelConfig, native_arguments, parse_config
from flagrelease.model.v4.efforts import recognise
from flagrelease.model.v4.inventory import inventory
from flagrelease.model.v4.published import NAMES, published_names
from flagrelease.model.v4.rounding import OF_RELEASE
from flagrelease.model.v4.unfit import naming_hint, reasons


def _caches(config: ModelConfig, release: ReleaseFormatName) -> SequenceCaches:
    numerics = OF_RELEASE[release]
    sizes = {length: sequence_bytes(config, numerics, length) for length in sequence_lengths(config)}
    return SequenceCaches(sizes, lambda memory: longest_context(config, numerics, memory))


V4 = Family[ModelConfig](
    model_type="deepseek_v4",
    parse=parse_config,
    inventory=inventory,
    native_arguments=native_arguments,
    without_drafts=without_drafts,
    published=published_names,
    names=NAMES,
    title="DeepSeek-V4",
    mp_readers="flagrelease's engine and FlagOS' engine",
    formats=frozenset(RELEASE_FORMATS),
    reasons=reasons,
    hint=naming_hint,
    native_scale_fmt=True,
    repack_tile=(128, 128),
    attention={0: "sliding window", 4: "compressed by 4, indexed", 128: "compressed by 128"},
    caches=_caches,
    efforts=recognise,
    runs_drafts=True,
)
