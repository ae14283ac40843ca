"""The check `config`: config.json and inference/config.json say what the weights are, and describe the source's model.

A BF16 folder that still says FP8 loads as garbage, or not at all; no other check would notice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath
from typing import Any

from flagrelease.errors import CheckpointError, VerificationError
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION, RELEASE_FORMATS, Description, ReleaseFormat
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of, read_config
from flagrelease.records.manifest import Manifest, TargetRecord
from flagrelease.strict_json import parse_json
from flagrelease.verify import described, modelslim
from flagrelease.verify.expected import expected_weights
from flagrelease.verify.origin import Origin
from flagrelease.verify.result import Check, CheckLog, Finding

CONFIG = "config.json"
NATIVE_CONFIG = "inference/config.json"
# What a conversion may change; all other keys are the model's.
_OF_NUMBERS = {"quantization_config", "expert_dtype", "torch_dtype", "dtype"}
_NATIVE_OF_NUMBERS = {"dtype", "scale_fmt", "expert_dtype", "scale_dtype"}
_DETAIL = "config.json and inference/config.json against the target, each other and the source"


def check_config(folder: Path, manifest: Manifest, source: Origin | None) -> tuple[FamilyConfig | None, Check]:
    """Check both configs. The config is None if config.json cannot be read as DeepSeek-V4's."""
    log = CheckLog("config")
    try:
        config, document = read_config(folder / CONFIG)
    except CheckpointError as error:
        log.add(Finding(file=CONFIG, rule=str(error)))
        return None, log.close(_DETAIL)
    log.saw(1)
    release = RELEASE_FORMATS[manifest.target.dtype]
    _check_described(folder, document, config, manifest, log)
    # DeepSeek's own code, which reads the second file, loads no release in the forms of other stacks
    if (folder / NATIVE_CONFIG).exists() or release.description is Description.DEEPSEEK:
        _check_native(folder / NATIVE_CONFIG, config, manifest, source, log)
    if source is not None:
        _compare_source(document, manifest, source, release, log)
        _compare_experts(config, source.config, manifest.target, log)
    return config, log.close(_DETAIL)


def _check_described(
    folder: Path, document: dict[str, Any], config: FamilyConfig, manifest: Manifest, log: CheckLog
) -> None:
    """That the release says of its weights what they are."""
    try:
        weights = expected_weights(manifest, config)
    except VerificationError:  # why is said by the check of the structure
        weights = []
    for problem in described.problems(manifest, document, config, weights):
        log.add(Finding(file=CONFIG, rule=problem))
    if weights and RELEASE_FORMATS[manifest.target.dtype].description is Description.MODELSLIM:
        name = MODELSLIM_DESCRIPTION
        try:
            description = _read_object(folder / name)
        except CheckpointError as error:
            log.add(Finding(file=name, rule=str(error)))
            return
        log.saw(1)
        for problem in modelslim.problems(description, weights):
            log.add(Finding(file=name, rule=problem))


def _check_native(path: Path, config: FamilyConfig, manifest: Manifest, source: Origin | None, log: CheckLog) -> None:
    try:
        native = _read_object(path)
    except CheckpointError as error:
        log.add(Finding(file=NATIVE_CONFIG, rule=str(error)))
        return
    log.saw(1)
    wanted = family_of(config).native_arguments(config) | _native_numbers(config, "expert_dtype" in native)
    # a null and a missing key are the same to DeepSeek's dataclass only where the default is None
    found = {key: value for key, value in native.items() if value is not None or key not in _NATIVE_OF_NUMBERS}
    _compare(NATIVE_CONFIG, found, wanted, "config.json makes it", log)
    content = None if source is None else source.files.find(NATIVE_CONFIG)
    if source is not None and content is not None:
        theirs = _parse_object(content, source.root / NATIVE_CONFIG)
        model = _model_part(_without_dropped(theirs, manifest))
        _compare(NATIVE_CONFIG, _model_part(found), model, "the source's file says", log)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    return _parse_object(content, path)


def _parse_object(content: bytes, path: PurePath) -> dict[str, Any]:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(document).__name__}")
    return document


def _native_numbers(config: FamilyConfig, names_experts: bool) -> dict[str, Any]:
    if config.block_quantisation is None:
        return {"dtype": "bf16"}
    numbers: dict[str, Any] = {"dtype": "fp8"}
    # DeepSeek's ModelArgs knows expert_dtype "fp4"; without it experts have `dtype`, so FP8 experts need no mention
    if config.declared_expert_dtype == "fp4" or names_experts:
        numbers["expert_dtype"] = config.declared_expert_dtype
    if config.block_quantisation.scale_fmt is not None and family_of(config).native_scale_fmt:
        numbers["scale_fmt"] = config.block_quantisation.scale_fmt
    return numbers


def _model_part(native: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in native.items() if key not in _NATIVE_OF_NUMBERS}


def _compare_source(
    document: dict[str, Any], manifest: Manifest, source: Origin, release: ReleaseFormat, log: CheckLog
) -> None:
    digest = hashlib.sha256(source.files.read(CONFIG)).hexdigest()
    if digest != manifest.source.config_sha256:
        log.add(Finding(file=CONFIG, rule=f"the source's has SHA-256 {digest}, not the one recorded"))
    mine, theirs = (
        {key: value for key, value in doc.items() if key not in _OF_NUMBERS}
        for doc in (document, _without_dropped(source.document, manifest))
    )
    _compare(CONFIG, mine, theirs, "the source says", log)
    blocks = [doc.get("quantization_config") or {} for doc in (document, source.document)]
    if all(blocks) and release.description is Description.DEEPSEEK:
        # a release that decodes what the source has quantised lists that, on top of what the source lists
        free = {"expert_dtype"} | ({"ignored_layers"} if release.wo_a is None else set())
        mine, theirs = ({key: value for key, value in block.items() if key not in free} for block in blocks)
        _compare(CONFIG, mine, theirs, "the source's quantization_config says", log)


def _without_dropped(document: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """A config of the source, either of the two, as a release must have it that dropped its draft stages."""
    if manifest.target.drafts == "keep":
        return document
    left: dict[str, Any] = {}
    if "text_config" in document:  # V4.1 has the model's numbers in there
        return document | {"text_config": _without_dropped(document["text_config"], manifest)}
    for key, value in document.items():
        if key in ("num_nextn_predict_layers", "n_mtp_layers"):
            left[key] = 0
        elif key == "compress_ratios":  # one for each layer, then one for each stage
            left[key] = value[: document.get("num_hidden_layers", document.get("n_layers"))]
        elif not key.startswith("dspark"):
            left[key] = value
    if "n_layers" in document:  # DeepSeek's default is a stage
        left["n_mtp_layers"] = 0
    return left


def _compare_experts(config: FamilyConfig, source: FamilyConfig, target: TargetRecord, log: CheckLog) -> None:
    experts, theirs = config.declared_expert_dtype, source.declared_expert_dtype
    if target.dtype == "native" and theirs is not None and experts != theirs:  # the first upload of Flash does not say
        log.add(Finding(file=CONFIG, rule=f"expert_dtype is {experts!r}, the source says {theirs!r}"))


def _compare(file: str, found: dict[str, Any], wanted: dict[str, Any], who: str, log: CheckLog) -> None:
    for key in sorted(found.keys() | wanted.keys()):
        if key not in found:
            log.add(Finding(file=file, rule=f"{key} is missing, {who} {wanted[key]!r}"))
        elif key not in wanted:
            log.add(Finding(file=file, rule=f"{key} is {found[key]!r}, {who} absent"))
        elif found[key] != wanted[key]:
            log.add(Finding(file=file, rule=f"{key} is {found[key]!r}, {who} {wanted[key]!r}"))
