"""A third hub is its facts and one line: plans, cards, limits, licences and addresses ask them and no hub's name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from flagrelease.cli import main
from flagrelease.errors import UsageError
from flagrelease.publish.hubs import registry
from flagrelease.publish.hubs.hub import CardRules, Hub, HubLimits
from flagrelease.publish.hubs.names import WRITTEN_NAMES, is_written_by_publishing
from flagrelease.publish.publication import Publication
from flagrelease.publish.publish import publish
from flagrelease.publish.reading.remote import Address, parse_address

PACKAGE = Path(registry.__file__).parents[2]
THIRD = Hub(
    name="third",
    scheme="third",
    limits=HubLimits(10**9, 10**6, 1000, 100),
    licences={"MIT": "the MIT one"},
    card=CardRules(("license", "base_model", "base_model_relation", "shape"), frozenset(), {"shape": "round"}),
    documents={"configuration.json": b"{}"},
    download="third get {repo} {folder}",
    reader=f"{__name__}:ThirdClient",
    client=f"{__name__}:ThirdClient",
    package="third-client",
    token="third",
    login="ask its owner",
    commits=lambda files: 7,
)
SENT: list[str] = []


class ThirdClient:
    def __init__(self, endpoint: str | None) -> None:
        pass

    def publish(self, publication: Publication, progress: object) -> str:
        SENT.extend(publication.digests)
        return "done"


@pytest.fixture(autouse=True)
def _third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "HUBS", (*registry.HUBS, THIRD))


def test_it_is_planned_and_published(release: Path, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["publish", str(release), "--chip", "nvidia", "--to", "third", "--report", str(report), "--repo", "a/b"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "repository on third: a/b" in out
    assert "7 commits" in out
    done = publish(release, "nvidia", "third", report=report, yes=True)
    card = done.publication.by_path["README.md"].origin
    assert isinstance(card, bytes)
    assert card.startswith(b"---\nlicense: the MIT one\nbase_model: ")
    assert b"shape: round\n" in card
    assert b"third get FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS " in card
    assert done.revision == "done"
    assert "configuration.json" in SENT


def test_its_addresses_and_limits_are_known() -> None:
    assert registry.hub_by_scheme("third") is THIRD
    assert registry.file_limits()["third"] == 10**9
    assert registry.known_hub("third") == "third"
    assert parse_address("hf://a/b") == Address(registry.HUBS[0], "a/b", None)


def test_a_licence_that_it_does_not_spell_is_refused() -> None:
    with pytest.raises(UsageError, match="no known spelling on third"):
        THIRD.licence("Apache-2.0")
    assert replace(THIRD, licences={"Apache-2.0": "x"}).licence("Apache-2.0") == "x"


def test_every_file_that_only_a_hub_reads_is_a_name_that_plans_leave_free() -> None:
    assert {name for hub in registry.HUBS for name in hub.documents} <= WRITTEN_NAMES
    assert all(map(is_written_by_publishing, ("run_hf.sh", "run_mp16.sh", "run_node.sh", "model.sig")))
    assert not any(map(is_written_by_publishing, ("run_mp0.sh", "sub/report.json", "config.json", "manifest.jsonx")))


# Who stated a digest of a source file; downloads are another matter than publishing.
ABOUT_SOURCES = {"records/manifest.py", "source/digests.py", "source/hub_listing.py"}


def test_nothing_outside_the_hubs_compares_with_a_hubs_name() -> None:
    """Before, some twenty places did."""
    compared = re.compile(r"""["'](modelscope|huggingface)["']""")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "publish" / "hubs" and compared.search(path.read_text(encoding="utf-8"))
    }
    assert found <= ABOUT_SOURCES
