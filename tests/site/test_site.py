"""The morning's site as files: whole, escaped, deterministic, and true to the records that it is made of."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import made_site
import pytest
from made_site import HOSTILE, LONG, RTL, Output, entry, manifest, report
from test_page import Walk

from flagrelease.cli import main
from flagrelease.errors import UsageError
from flagrelease.publish.hubs.names import CARD_NAME, STATEMENT_NAME
from flagrelease.records.manifest import MANIFEST_NAME, FileRecord, TensorRecord
from flagrelease.records.rules import ValidationRules
from flagrelease.site.build import BuiltSite, SiteRequest, build
from flagrelease.site.folder import find
from flagrelease.site.markdown import card_parts
from flagrelease.site.names import page_name
from flagrelease.site.validation import chip_state


def make(folder: Path, out: Path | None = None, pairs: tuple[tuple[str, str], ...] = (), nights: int = 60) -> BuiltSite:
    return build(SiteRequest(folder, out or folder / "site", pairs, nights), lambda done, total: None)


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in sorted(site.rglob("*.html"))}


def contents(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("week") / "out"
    made_site.week(folder)
    make(folder, pairs=(("fp8-hf", "bf16-mp16"),))
    return folder


def hostile(folder: Path) -> Output:
    """Everything that a record may hold: markup, quotes, very long names, text from right to left, control letters."""
    out = Output(folder, model=HOSTILE)
    name = f'fp8-hf "<i>{RTL}'
    made = manifest(
        model=HOSTILE, recipe=None, files=(FileRecord(path=f"{RTL}/<b>{LONG}.txt", size=1, sha256="0" * 64),)
    )  # fmt: skip
    tensors = {**made.tensors, HOSTILE: TensorRecord(dtype=HOSTILE, shape=(1,), blake3="1" * 64)}
    source = made.source.model_copy(update={"repo": HOSTILE, "revision": LONG})
    made = made.model_copy(update={"tensors": tensors, "source": source})
    first = out.release(made, name)
    judged = report(first, "nvidia", {"logits": "fail"}, commands=(HOSTILE,), environment={HOSTILE: LONG})
    out.night([entry("nvidia", first, out.report(judged, name), "fail", name)], summary=HOSTILE, recipe=RTL)
    second = out.release(made.model_copy(update={"plan": HOSTILE, "inexact": {HOSTILE: 3}}), name)
    judged = report(second, "nvidia", {"logits": "fail"}, kl=1.0, commands=(HOSTILE,), environment={HOSTILE: RTL})
    chips = [entry("nvidia", second, out.report(judged, name), "fail", name), entry(HOSTILE, None, None, None, LONG)]
    out.night(chips, verdict="failed", summary=HOSTILE, error=HOSTILE, notes=(LONG,), commit=HOSTILE)
    return out


SITES = {"a week": made_site.week, "hostile names": hostile}


@pytest.mark.parametrize("records", SITES.values(), ids=SITES.keys())
def test_every_page_is_whole_and_every_link_leads_somewhere(tmp_path: Path, records: object) -> None:
    records(tmp_path / "out")  # type: ignore[operator]
    make(tmp_path / "out", tmp_path / "site", nights=2)
    found = pages(tmp_path / "site")
    own = {path: text for path, text in found.items() if not path.startswith("reports/")}
    ids = {path: re.findall(r'\bid="([^"]+)"', text) for path, text in own.items()}
    for path, text in own.items():
        walk = Walk(text)
        assert [name for name, count in Counter(ids[path]).items() if count > 1] == [], path
        tags = [tag for tag, _ in walk.elements]
        assert (tags.count("h1"), tags.count("main"), text.partition("</head>")[0].count("<title>")) == (1, 1, 1), path
        assert "script" not in tags
        assert "img" not in tags
        levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), (path, levels)
        for tag, attributes in walk.elements:
            for name in ("href", "src"):
                if tag != "svg" and (link := attributes.get(name)) and not link.startswith(("https://", "data:")):
                    place, _, anchor = unquote(link).partition("#")
                    target = (tmp_path / "site" / path).parent / place if place else tmp_path / "site" / path
                    inside = target.resolve().relative_to((tmp_path / "site").resolve()).as_posix()
                    assert inside in found, (path, link)
                    assert not anchor or anchor in ids[inside], (path, link)


def test_no_name_becomes_markup_or_turns_the_line_around(tmp_path: Path) -> None:
    hostile(tmp_path / "out")
    make(tmp_path / "out", tmp_path / "site")
    own = {path: text for path, text in pages(tmp_path / "site").items() if not path.startswith("reports/")}
    seen = 0
    for path, text in own.items():
        assert "window.broken=1</script>" not in text, path
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text), path
        assert "\\u202e" in text or path.startswith("cards/"), path
        seen += "{{ 7*7 }}" in text
        assert all(len(part.encode()) < 120 for part in path.split("/")), path
    assert seen >= 4
    assert RTL in own["index.html"]


def test_the_same_records_give_the_same_bytes_wherever_they_are(week: Path, tmp_path: Path) -> None:
    shutil.copytree(week, tmp_path / "moved", ignore=shutil.ignore_patterns("site"))
    made = make(tmp_path / "moved", tmp_path / "there", (("fp8-hf", "bf16-mp16"),))
    assert contents(tmp_path / "there") == contents(week / "site")
    assert made.bytes == sum(map(len, contents(tmp_path / "there").values()))
    assert (made.releases, made.nights, made.comparisons, made.troubles) == (2, 3, 2, ())
    again = contents(week / "site")
    make(week, pairs=(("fp8-hf", "bf16-mp16"),))  # a site inside its output folder is no part of the next one
    assert contents(week / "site") == again


def cells(site: Path) -> dict[tuple[str, str], str]:
    """(release, chip) -> the text of the cell, from the first page's tables."""
    text = (site / "index.html").read_text("utf-8")
    found: dict[tuple[str, str], str] = {}
    for table in re.findall(r'<div class="table matrix".*?</table>', text, re.S):
        chips = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', table)[2:]
        for row in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table, re.S):
            name = re.sub("<[^>]*>", "", row.partition("</th>")[0])
            values = re.findall(r"<td(?! class=\"num\")[^>]*>(.*?)</td>", row, re.S)
            words = [" ".join(re.sub("<[^>]*>", " ", value).split()) for value in values]
            found |= {(name, chip): said for chip, said in zip(chips, words, strict=True)}
    return found


def test_the_matrix_says_what_reports_say_of_the_release_as_it_is(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    rules = ValidationRules(stages=("integrity", "weights", "logits"))
    out.report(report(of, "nvidia"))
    out.report(report(of, "ascend", {"logits": "fail"}))
    out.report(report(of, "hygon", {"logits": "not-run"}))
    out.report(report(of, "metax", {"logits": "not-informative"}, rules=rules))
    out.report(report("0" * 64, "kunlunxin"))
    (tmp_path / "validation" / "fp8-hf-zhenwu").mkdir()
    (tmp_path / "validation" / "fp8-hf-zhenwu" / "report.json").write_text("{}")
    broken = {"convert": made_site.step("failed")}
    out.night([entry("iluvatar", None, None, None, "bf16-mp16", steps=broken, stack="flagos")])
    make(tmp_path)
    found = {key: said.split(" report of ")[0] for key, said in cells(tmp_path / "site").items()}
    assert found["fp8-hf", "nvidia"].startswith("✓ Pass")
    assert found["fp8-hf", "ascend"].startswith("✗ Fail")
    assert found["fp8-hf", "hygon"].startswith("? Cannot tell")
    assert found["fp8-hf", "metax"].startswith("∅ Not informative")
    assert found["fp8-hf", "kunlunxin"].startswith("↻ Stale")
    assert found["fp8-hf", "zhenwu"].startswith("✗ Unreadable")
    assert found["fp8-hf", "mthreads"].startswith("– Not run")
    assert found["fp8-hf", "iluvatar"] == "· Not for this chip"
    assert found["bf16-mp16", "iluvatar"].startswith("✗ Not converted flagos")
    assert next(iter(found)) == ("bf16-mp16", "nvidia"), "chips stand in the order of the chip table"


def test_a_report_for_another_chip_is_not_taken_for_this_one(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    out.report(report(of, "nvidia"), chip="ascend")
    assert chip_state("ascend", tmp_path / "validation/fp8-hf-ascend/report.json", of).state == "unreadable"


def test_a_stale_report_proves_no_weights(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    out.report(report(of, "nvidia"))
    path = tmp_path / "validation/fp8-hf-nvidia/report.json"
    assert chip_state("nvidia", path, of).weights_proved
    assert not chip_state("nvidia", path, "0" * 64).weights_proved


def test_chips_of_a_release_are_not_those_of_one_with_a_longer_name(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    longer = out.release(manifest("fp8-mp8"), "fp8-hf-nightly")
    out.report(report(of, "nvidia"))
    out.report(report(longer, "ascend"), release="fp8-hf-nightly")
    (found,) = find(tmp_path).outputs
    assert (found.validated_chips("fp8-hf"), found.validated_chips("fp8-hf-nightly")) == (["nvidia"], ["ascend"])


def text_of(path: Path) -> str:
    return " ".join(Walk(path.read_text("utf-8")).words().split())


def test_a_night_says_what_it_changed(week: Path) -> None:
    second = text_of(week / "site" / "nights" / "20261102T220000Z.html")
    for said in (
        "commit cccccccccccc to dddddddddddd", "made again: 1 of 4 tensors differ, 2 of 2 files differ.",
        "other bytes: config.json", "mean KL, nats: 0.004 to 0.006", "convert was done: the recipe changed",
        "12 min 10 min 1.8 GB/s 2 GB/s", "2026-11-02 22:00 UTC",
    ):  # fmt: skip
        assert said in second, said
    third = text_of(week / "site" / "nights" / "20261103T220000Z.html")
    for said in (
        "pass to fail", "logits: pass to fail", 'rule stages: ["integrity", "weights", "logits"] to',
        "0.006 to 0.5, pass to fail", "no end: the run was killed, or goes on", "int8-hf on hygon",
        "validate: done to failed: ended as failed",
    ):  # fmt: skip
        assert said in third, said
    index = text_of(week / "site" / "index.html")
    assert "nvidia failed its validation; hygon was not converted." in index
    assert index.index("Failed") < index.index("What changed last night") < index.index("fp8-hf on nvidia")


def test_speeds_are_compared_with_the_last_time_that_a_stage_was_done(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    for seconds, kept in ((600, False), (0, True), (700, False)):
        steps = {"verify": made_site.step("done", seconds, 5e9 if kept else seconds * 1e6, kept=kept)}
        out.night([entry("nvidia", of, None, None, steps=steps)])
    make(tmp_path)
    second, third = (text_of(tmp_path / f"site/nights/2026110{n}T220000Z.html") for n in (2, 3))
    assert "verify ✓ Kept - 10 min - 600 MB/s" in second
    assert "verify ✓ Done 12 min 10 min 700 MB/s 600 MB/s" in third


def test_weights_that_a_night_proved_are_proved_before_there_is_a_report(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest())
    out.night([entry("nvidia", of, None, None, steps={"verify": made_site.step("done")})])
    make(tmp_path)
    found = cells(tmp_path / "site")
    assert found["fp8-hf", "nvidia"].startswith("– Not run weights proved")
    assert "weights proved" not in found["fp8-hf", "mthreads"]
    assert "proved by the run of 2026-11-01 22:00 UTC" in text_of(tmp_path / "site/releases/fp8-hf.html")
    out.release(manifest(version=1))
    make(tmp_path)
    assert "weights proved" not in cells(tmp_path / "site")["fp8-hf", "nvidia"], "that was another manifest"


def test_the_page_of_a_release_has_its_facts_and_history(week: Path) -> None:
    said = text_of(week / "site" / "releases" / "fp8-hf.html")
    of = (week / "fp8-hf" / "manifest.json").read_bytes()
    for words in (
        made_site.sha256(of), "who/tiny", "Not lossless", "layers.*.w", "1 of 8", "model-00001-of-00001.safetensors",
        made_site.digest("weights 1"), "it was made again since", "flagrelease validate fp8-hf --chip nvidia",
        "2026-11-02 22:00 UTC", "logits leaves open: The rest.",
    ):  # fmt: skip
        assert words in said, words


def test_configs_of_two_nights_are_compared_by_key_where_they_were_kept(week: Path, tmp_path: Path) -> None:
    first, second = (made_site.sha256(manifest(version=n).to_json())[:12] for n in range(2))
    page = text_of(week / "site" / "diffs" / f"{first}-{second}.html")
    assert "config.json key before after version 0 1" in page
    shutil.copytree(week, tmp_path / "out", ignore=shutil.ignore_patterns("site"))
    (kept,) = (tmp_path / "out" / "history" / "fp8-hf").glob("*/config.json")
    kept.unlink()
    make(tmp_path / "out")
    assert "not at hand in fp8-hf of before" in text_of(tmp_path / "out" / "site" / "diffs" / f"{first}-{second}.html")


def test_an_old_night_has_a_row_and_no_page(tmp_path: Path) -> None:
    made_site.week(tmp_path)
    make(tmp_path, nights=1)
    assert [path.name for path in sorted((tmp_path / "site/nights").iterdir())] == [
        "20261103T220000Z.html",
        "index.html",
    ]
    assert text_of(tmp_path / "site/nights/index.html").count("22:00 UTC") >= 3
    assert not (tmp_path / "site" / "diffs").exists(), "what changed two nights ago is not compared"


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    made_site.week(tmp_path)
    (tmp_path / "nights" / "20261104T220000Z.json").write_text("{}")
    (tmp_path / "int8-hf").mkdir()
    (tmp_path / "int8-hf" / "manifest.json").write_text("{}")
    made = make(tmp_path)
    assert len(made.troubles) == 1
    assert made.troubles[0].startswith("int8-hf/manifest.json: ")
    assert made.troubles[0] in text_of(tmp_path / "site/index.html")
    assert "Unreadable" in text_of(tmp_path / "site/nights/index.html")
    assert ("int8-hf", "hygon") in cells(tmp_path / "site")


def test_several_output_folders_are_one_site(tmp_path: Path) -> None:
    made_site.week(tmp_path / "all" / "flash")
    out = Output(tmp_path / "all" / "pro", model="pro")
    out.night([entry("nvidia", out.release(manifest(model="pro")), None, None)])
    made = make(tmp_path / "all", tmp_path / "site")
    assert (made.releases, made.nights) == (3, 4)
    names = {name for name, _ in cells(tmp_path / "site")}
    assert names == {"flash/fp8-hf", "flash/bf16-mp16", "flash/int8-hf", "pro/fp8-hf"}
    assert len(list((tmp_path / "site" / "nights").iterdir())) == 5


def test_a_card_is_shown_where_publishing_would_write_one(tmp_path: Path) -> None:
    out = Output(tmp_path)
    of = out.release(manifest("bf16-mp16"), "bf16-mp16")
    make(tmp_path)
    assert not (tmp_path / "site" / "cards").exists(), "a release without a passing report is not published"
    out.report(report(of, "ascend"), release="bf16-mp16")
    make(tmp_path)
    (card,) = (tmp_path / "site" / "cards").iterdir()
    assert "tiny for Huawei Ascend" in text_of(card)
    assert "card" in cells(tmp_path / "site")["bf16-mp16", "ascend"]


def test_cards_are_markdown_without_markup() -> None:
    card = (
        "---\nlicense: mit\n---\n# T <script>x</script>\n\n![p](https://a.b/c.png) [l](javascript:x) <b>b</b>\n\n"
        "| a |\n|---|\n| <i> |\n\n```bash\n<u>\n```\n"
    )
    metadata, body = card_parts(card)
    assert metadata == "license: mit"
    tags = {tag for tag, _ in Walk(str(body)).elements}
    assert tags == {"h2", "p", "div", "table", "thead", "tr", "th", "tbody", "td", "pre", "code", "a"}
    assert "<u>" not in body
    assert re.findall(r"href=\"([^\"]*)", body) == ["https://a.b/c.png"], "a picture is a link, a script is neither"


def test_page_names_are_plain_short_and_different() -> None:
    assert page_name("fp8-hf") == "fp8-hf"
    hard = [
        ("..",),
        ("a/b",),
        ("a-b",),
        ("a", "b"),
        ("A",),
        (LONG,),
        (LONG + "x",),
        (RTL,),
        ("",),
        ("\ud800",),
        ("a b",),
    ]
    names = [page_name(*parts) for parts in hard]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,80}", name) for name in names)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(tmp_path / "out")
    out.release(manifest())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "out"):
        assert main(["site", str(tmp_path / "out"), "--out", str(place)]) == 4
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert "was not written by `flagrelease site`" in capsys.readouterr().err
    assert main(["site", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["releases"] == 1
    before = contents(tmp_path / "out" / "site")
    assert main(["site", str(tmp_path / "out"), "--pair", "fp8-hf:nothing"]) == 2
    assert main(["site", str(tmp_path / "out"), "--pair", "fp8-hf"]) == 2
    assert contents(tmp_path / "out" / "site") == before, "a call that failed leaves the site of before"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_a_folder_without_releases_is_refused(tmp_path: Path) -> None:
    assert main(["site", str(tmp_path)]) == 2
    assert main(["site", str(tmp_path / "none")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_link_leads_to_is_left_out_and_named(tmp_path: Path) -> None:
    """A linked release was missing without a word; a linked page put a file from elsewhere into the site."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    made_site.week(out)
    (out / "bf16-mp16").rename(elsewhere)
    (out / "bf16-mp16").symlink_to(elsewhere)
    (out / "int8-hf").symlink_to(tmp_path / "not-mounted")
    page, secret = out / "validation" / "fp8-hf-nvidia" / "report.html", tmp_path / "secret"
    secret.write_text("a secret")
    page.unlink()
    page.symlink_to(secret)
    published = out / "published"
    published.mkdir()
    (published / MANIFEST_NAME).write_bytes(manifest().to_json())
    (published / STATEMENT_NAME).write_text("{}")
    (published / CARD_NAME).symlink_to(secret)
    (out / "validation").rename(tmp_path / "disk")
    (out / "validation").symlink_to(tmp_path / "disk")  # a whole folder on another disk is read
    made = make(out)
    assert f"{CARD_NAME} is a link that leads out of the folder, so it is not copied" in made.troubles[0]
    assert made.troubles[1:] == (
        "bf16-mp16: a link, which is not followed",
        "int8-hf: a link, which is not followed",
        "validation/fp8-hf-nvidia/report.html: a link that leads out of the folder, so it is not copied",
    )
    found = contents(out / "site")
    assert not any(b"a secret" in content for content in found.values())
    reports = [path.partition("/")[2] for path in found if path.startswith("reports/") and path.endswith(".html")]
    assert [name.startswith("fp8-hf-mthreads-") for name in reports] == [True]
    assert all(trouble in text_of(out / "site/index.html") for trouble in made.troubles[1:])


def test_a_folder_of_links_alone_is_refused_with_the_link_named(tmp_path: Path) -> None:
    (tmp_path / "fp8-hf").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="fp8-hf is a link, which is not followed"):
        find(tmp_path)
