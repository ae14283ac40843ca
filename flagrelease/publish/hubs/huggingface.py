"""Hugging Face: limits of hub-docs `storage-limits`, card fields of hub-docs `modelcard.md` and `model-index`."""

from __future__ import annotations

from flagrelease.publish.hubs.hub import CardRules, Hub, HubLimits

HUGGING_FACE = Hub(
    name="huggingface",
    scheme="hf",
    limits=HubLimits(
        file_bytes=500 * 10**9,
        advised_file_bytes=200 * 10**9,
        repo_files=100_000,
        folder_entries=10_000,
        commit_files=25_000,
    ),
    licences={"MIT": "mit", "Apache-2.0": "apache-2.0"},
    card=CardRules(
        fields=(
            "license",
            "language",
            "base_model",
            "base_model_relation",
            "pipeline_tag",
            "library_name",
            "tags",
            "model-index",
        ),
        optional=frozenset({"language", "library_name", "model-index"}),
        fixed={"pipeline_tag": "text-generation"},
    ),
    documents={},
    download="hf download {repo} --local-dir {folder}",
    reader="flagrelease.publish.reading.huggingface:HuggingFaceClient",
    client="flagrelease.publish.upload.huggingface:HuggingFace",
    package="huggingface-hub",
    token=r"hf_[A-Za-z0-9]{20,}",
    login="set HF_TOKEN or run `hf auth login`",
    commits=lambda files: 2,  # one on the branch, one on main
)
