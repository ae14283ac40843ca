"""The YAML at the top of a card, for each hub, with the hubs' rules checked here: their own checks need the network.

The rules are the hubs' own (`hubs/`). They clash in how they spell the licence, so each hub has a card of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from flagrelease.errors import VerificationError
from flagrelease.formats.releases import RELEASE_FORMATS, Description
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.records import Records
from flagrelease.publish.serving import loads_in_transformers
from flagrelease.records.report import Report

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TAGS = {Description.COMPRESSED_TENSORS: ["compressed-tensors"], Description.MODELSLIM: ["modelslim"]}
_RELATIONS = {"adapter", "merge", "quantized", "finetune"}


def front_matter(records: Records, hub: Hub) -> dict[str, Any]:
    """The metadata that the hub takes, in the order in which they are written.

    A change of format that loses nothing has no relation of its own; `quantized` is the nearest there is, and the text
    of the card says what was exact. `library_name` is given only where transformers was seen to load the release.
    """
    product = re.sub(r"[^a-z0-9]+", "-", records.product.name.lower()).strip("-")
    tags = [records.family.model_type, "moe", "flagos", records.chip.id, product, records.target.dtype, records.layout]
    tags += [] if records.wanted.spec.stack is None else [records.wanted.spec.stack]
    tags += _TAGS.get(RELEASE_FORMATS[records.target.dtype].description, [])
    known: dict[str, Any] = {
        "license": hub.licence(records.licence),
        "base_model": records.recipe.source.repo,
        "base_model_relation": "quantized",
        "tags": list(dict.fromkeys(tags)),
        **hub.card.fixed,
    }
    if records.recipe.languages:
        known["language"] = list(records.recipe.languages)
    if loads_in_transformers(records):
        known["library_name"] = "transformers"
    if records.report is not None and (results := list(_results(records.report))):
        name = records.wanted.repo.partition("/")[2]
        known["model-index"] = [{"name": name, "results": results}]
    return {field: known[field] for field in hub.card.fields if field in known}


def _results(report: Report) -> Iterator[dict[str, Any]]:
    """The scores for the hub's tables, each with where it was computed. One that tells nothing is in the text alone."""
    for benchmark in report.benchmarks:
        if benchmark.verdict == "not-informative":
            continue
        score, low, high = benchmark.chip, round(benchmark.chip.low, 2), round(benchmark.chip.high, 2)
        name = (
            f"{benchmark.metric} ({benchmark.unit}); n = {benchmark.n}, {benchmark.repeats} repeats, "
            f"{score.confidence:.0%} interval {low:g} to {high:g}; {report.computed_where}"
        )
        args = {"n": benchmark.n, "repeats": benchmark.repeats, "low": low, "high": high}
        yield {
            "task": {"type": "text-generation"},
            "dataset": {"type": benchmark.dataset, "name": benchmark.task, "revision": benchmark.revision},
            "metrics": [{"type": benchmark.metric, "value": round(score.value, 2), "name": name, "args": args}],
        }


def render(data: dict[str, Any]) -> str:
    """The block with its fences."""
    return "---\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120) + "---\n"


def check_card(text: str, hub: Hub) -> dict[str, Any]:
    """The metadata of a card, if it follows the hub's rules.

    Raises:
        VerificationError: no metadata, not YAML, a blank or unknown field, a value the hub does not take.
    """
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        raise VerificationError(f"card for {hub.name}: no metadata")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise VerificationError(f"card for {hub.name}: metadata are not YAML ({error})") from error
    if not isinstance(data, dict):
        raise VerificationError(f"card for {hub.name}: metadata are not a mapping")
    if problems := list(_problems(data, hub)):
        raise VerificationError(f"card for {hub.name}: {'; '.join(problems)}")
    return data


def _problems(data: dict[str, Any], hub: Hub) -> Iterator[str]:
    yield from (f"{key} is missing" for key in hub.card.fields if key not in {*data, *hub.card.optional})
    yield from (f"{key} is no field of {hub.name}" for key in data if key not in hub.card.fields)
    yield from (f"{path} is blank" for path in _blank(data, ""))
    if data.get("license") not in hub.licences.values():
        yield f"license {data.get('license')!r} is not how {hub.name} spells one"
    if not _REPO.fullmatch(str(data.get("base_model"))):
        yield f"base_model {data.get('base_model')!r} is no repository"
    if data.get("base_model_relation") not in _RELATIONS:
        yield f"base_model_relation {data.get('base_model_relation')!r} is not one of {', '.join(sorted(_RELATIONS))}"
    for key in ("language", "tags", "tasks", "frameworks", "domain"):
        if key in data and not (isinstance(data[key], list) and all(isinstance(item, str) for item in data[key])):
            yield f"{key} is not a list of words"
    for model in data.get("model-index", ()):
        yield from _index_problems(model)


def _index_problems(model: Any) -> Iterator[str]:
    if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model.get("results"):
        yield "model-index has an entry without name and results"
        return
    for result in model["results"]:
        dataset, metrics = result.get("dataset", {}), result.get("metrics", [])
        if not isinstance(result.get("task", {}).get("type"), str):
            yield "model-index: a result without task.type"
        if not all(isinstance(dataset.get(key), str) for key in ("type", "name")):
            yield "model-index: a result without dataset.type and dataset.name"
        if not metrics or not all(
            isinstance(m.get("type"), str) and isinstance(m.get("value"), float) for m in metrics
        ):
            yield "model-index: a result without metrics of type and number"


def _blank(value: Any, path: str) -> Iterator[str]:
    if value is None or value == "" or value == [] or value == {}:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _blank(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _blank(inner, f"{path}.{place}")
