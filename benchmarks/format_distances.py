"""How far each release format's logits are from the native run and from the BF16 run of the small trained model.

    python examples/tiny/documents.py documents.jsonl
    python benchmarks/format_distances.py documents.jsonl [--documents 24]

Converts `examples/tiny/flagrelease-tiny-v4` to every format (rows that lose something are allowed), runs each release
with its own numerics and with bf16, and prints the mean KL in nats over all positions of the documents, with the share
of positions whose likeliest token is the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from flagrelease import engine
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.engine.numerics import OF_RELEASE
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.records.recipe import ConvertSpec
from flagrelease.source.source import read_source

SOURCE = Path(__file__).parents[1] / "examples/tiny/flagrelease-tiny-v4"


def log_probabilities(folder: Path, numerics: str | None, documents: list[list[int]]) -> torch.Tensor:
    """Of all tokens after every position but the last: float64 [positions, V]."""
    model = engine.load(folder, numerics)  # type: ignore[arg-type]
    return torch.cat([model.logits(tokens)[:-1].double().log_softmax(-1) for tokens in documents])


def distance(reference: torch.Tensor, port: torch.Tensor) -> tuple[float, float]:
    """(mean KL(reference || port), share of positions whose likeliest token is the same)."""
    kl = (reference.exp() * (reference - port)).sum(-1)
    return float(kl.mean()), float((reference.argmax(-1) == port.argmax(-1)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--documents", dest="count", type=int, default=24)
    options = parser.parse_args()
    lines = options.documents.read_text().splitlines()[: options.count]
    tokenizer = engine.Tokenizer(SOURCE)
    documents = [tokenizer.encode(json.loads(line)["text"])[:256] for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        targets = [parse_target(f"{name}:hf", "shared") for name in RELEASE_FORMATS]
        plan = make_plan(read_source(SOURCE), targets, ConvertSpec(lossy_repack="allow"))
        convert(plan, Path(scratch), workers=2, lookup=cpu_lookup, progress=lambda done: None)
        native, oracle = (log_probabilities(SOURCE, numerics, documents) for numerics in ("native", "bf16"))
        print(f"{len(native)} positions of {len(documents)} documents; KL(native || bf16) {distance(native, oracle)}")
        for name in (one.name for one in RELEASE_FORMATS.values()):
            folder = Path(scratch) / f"{name}-hf"
            for numerics in sorted({OF_RELEASE[name], "bf16"}):
                port = log_probabilities(folder, numerics, documents)
                print(name, numerics, "native", distance(native, port), "oracle", distance(oracle, port), flush=True)


if __name__ == "__main__":
    main()
