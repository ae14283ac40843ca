"""Reads the nights of an output folder, and says what each changed since the night before that had the same release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.console import human_bytes
from flagrelease.diff.difference import ValueDifference
from flagrelease.diff.reports import ReportDifference, compare_reports
from flagrelease.diff.words import sides
from flagrelease.errors import VerificationError
from flagrelease.records.night import Night, NightChip, NightStep, read_night
from flagrelease.records.report import Report, parse_report
from flagrelease.site.compared import ComparedPair
from flagrelease.site.folder import OutputFolder, digest_of
from flagrelease.site.nights import NightNews, NightPage, NightRow

_ORDER = ("verdict", "weights", "config", "limit", "measure", "machine", "step", "release", "run")
_MEASURES = 8  # of a report that are listed; the report's page has all


@dataclass(slots=True)
class NightReader:
    """Reads the nights of one output folder; two reports are read where one took the place of the other.

    Attributes:
        compared: comparisons by the digests of the two manifests.
    """

    output: OutputFolder
    compared: Mapping[tuple[str, str], ComparedPair]
    _reports: dict[str, Path] = field(default_factory=dict)

    def pages(self) -> list[NightPage]:
        """The nights, the first one first."""
        self._reports = {digest_of(path): path for path in self.output.reports()}
        pages: list[NightPage] = []
        last: dict[tuple[str, str], NightChip] = {}
        done: dict[tuple[str, str], dict[str, NightStep]] = {}  # the last time that each stage was done
        before: Night | None = None
        for path in self.output.nights:
            try:
                night = read_night(path)
            except VerificationError as error:
                pages.append(NightPage(self.output, path.stem, None, str(error).removeprefix(f"{path}: ")))
                continue
            pairs = [((one.chip, one.release), one) for one in night.chips]
            rows = tuple(NightRow(one, self._news(last.get(p), one), dict(done.get(p, {}))) for p, one in pairs)
            there = {(one.chip, one.release) for one in night.chips}
            were = () if before is None else [(one.chip, one.release) for one in before.chips]
            news = () if before is None else tuple(_run_news(before, night))
            missing = tuple(pair for pair in were if pair not in there)
            pages.append(NightPage(self.output, path.stem, night, None, news, rows, missing))
            for pair, one in pairs:
                last[pair] = one
                done.setdefault(pair, {}).update({name: step for name, step in one.steps.items() if not step.kept})
            before = night
        return pages

    def _news(self, old: NightChip | None, new: NightChip) -> tuple[NightNews, ...]:
        if old is None:
            return (NightNews("release", "first night with it"),)
        found = [*_step_news(old, new)]
        if old.verdict != new.verdict:
            found.insert(0, NightNews("verdict", f"{old.verdict or 'none'} to {new.verdict or 'none'}"))
        if old.manifest_sha256 != new.manifest_sha256:
            found += self._release_news(old, new)
        if old.report_sha256 != new.report_sha256:
            found += self._report_news(old.report_sha256, new.report_sha256)
        return tuple(sorted(found, key=lambda one: _ORDER.index(one.kind)))

    def _release_news(self, old: NightChip, new: NightChip) -> Iterator[NightNews]:
        if old.manifest_sha256 is None or new.manifest_sha256 is None:
            gone = new.manifest_sha256 is None
            yield NightNews("weights", "the release is gone" if gone else "converted for the first time")
            return
        same = old.bytes == new.bytes or not old.bytes or not new.bytes
        size = "" if same else f" {human_bytes(old.bytes or 0)} became {human_bytes(new.bytes or 0)}."
        pair = self.compared.get((old.manifest_sha256, new.manifest_sha256))
        if pair is None:
            yield NightNews("weights", f"made again; what changed is not known, a manifest was not kept.{size}")
            return
        yield NightNews("weights", f"made again: {pair.summary}{size}", pair.page)
        if pair.configs:
            yield NightNews("config", f"other bytes: {', '.join(pair.configs)}", pair.page)

    def _report_news(self, old: str | None, new: str | None) -> list[NightNews]:
        if old is None or new is None:
            return [NightNews("verdict", "the first report" if old is None else "the report is gone")]
        before, after = self._report(old), self._report(new)
        if before is None or after is None:
            return [NightNews("verdict", "another report; what moved is not known, one of the two was not kept")]
        return _moved(compare_reports(before, after))

    def _report(self, sha256: str) -> Report | None:
        path = self._reports.get(sha256)
        if path is None:
            return None
        try:
            return parse_report(path.read_bytes(), path.name)
        except VerificationError:  # of a version of the schema that is no longer read
            return None


def _moved(found: ReportDifference) -> list[NightNews]:
    news = [NightNews("verdict", f"{name}: {old} to {new}") for name, (old, new) in found.stages.items()]
    news += [NightNews("limit", _changed(f"rule {one.key}", one)) for one in found.rules]
    for one in found.measures[:_MEASURES]:
        verdicts = "" if one.verdicts[0] == one.verdicts[1] else f", {' to '.join(v or 'absent' for v in one.verdicts)}"
        news.append(NightNews("measure", f"{one.name}: {_number(one.before)} to {_number(one.after)}{verdicts}"))
    if len(found.measures) > _MEASURES:
        news.append(NightNews("measure", f"and {len(found.measures) - _MEASURES} more measures moved"))
    news += [NightNews("machine", _changed(one.key, one)) for one in found.environment]
    return news or [NightNews("verdict", "another report with the same verdicts and measures")]


def _step_news(old: NightChip, new: NightChip) -> Iterator[NightNews]:
    for name, step in new.steps.items():
        before = old.steps.get(name)
        if before is not None and before.status != step.status:
            yield NightNews("step", f"{name}: {before.status} to {step.status}: {step.detail}")
        elif step.why and not step.kept:
            yield NightNews("step", f"{name} was done: {step.why}")


def _run_news(old: Night, new: Night) -> Iterator[NightNews]:
    parts = {
        "flagrelease": (old.tool.version, new.tool.version),
        "commit": (_short(old.commit), _short(new.commit)),
        "recipe": (_short(old.recipe_sha256), _short(new.recipe_sha256)),
        "source": (_short(old.source), _short(new.source)),
    }
    for name, (before, after) in parts.items():
        if before != after:
            yield NightNews("run", f"{name} {before} to {after}")


def _changed(name: str, one: ValueDifference) -> str:
    return f"{name}: {' to '.join(sides(one))}"


def _short(digest: str | None) -> str:
    return "not known" if digest is None else digest[:12]


def _number(size: float | None) -> str:
    return "absent" if size is None else f"{size:.4g}"
