"""`build`: reads an output folder and writes its site, a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.console import human_bytes
from flagrelease.diff.operand import Operand, read_operand
from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import REPORT_NAME
from flagrelease.site.comparisons import Comparisons
from flagrelease.site.folder import Found, OutputFolder, find
from flagrelease.site.history import history
from flagrelease.site.loading import Start, start
from flagrelease.site.markdown import card_parts
from flagrelease.site.matrix import Cell, MatrixRow, chip_order, make_matrix
from flagrelease.site.names import page_name
from flagrelease.site.news import NightReader
from flagrelease.site.nights import NightPage, last_readable, proved_by
from flagrelease.site.nights_page import write_nights
from flagrelease.site.publications import FolderPublication, read_publication
from flagrelease.site.release import ReleaseFacts, release_facts
from flagrelease.site.render import Renderer
from flagrelease.site.site_folder import SiteFolder
from flagrelease.site.validation import ChipState, chip_state, proved_without_report

_PAGE_NAME = "report.html"
Watch = Callable[[int, int], None]  # pages written, of about how many


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """What is made: `pairs` are compared, and the last `nights` nights have a page each."""

    folder: Path
    out: Path
    pairs: tuple[tuple[str, str], ...] = ()
    nights: int = 60


@dataclass(frozen=True, slots=True)
class BuiltSite:
    """What was written. `troubles`: records that cannot be read, which the site leaves out, and says so."""

    pages: int
    bytes: int
    releases: int
    nights: int
    comparisons: int
    troubles: tuple[str, ...]


def build(request: SiteRequest, watch: Watch) -> BuiltSite:
    """Write the site of `request.folder` to `request.out`, in place of an earlier one.

    Raises:
        UsageError: there is no release and no night, or a pair names no release.
        ResourceError: something cannot be read or written, or `request.out` is something else.
        VerificationError: a manifest of a pair that was asked for cannot be read.
    """
    return _Builder(request, watch).build()


@dataclass(slots=True)
class _Builder:
    request: SiteRequest
    watch: Watch
    troubles: list[str] = field(default_factory=list)
    models: dict[tuple[str, str], list[MatrixRow]] = field(default_factory=dict)  # by output folder and model
    shown: set[str] = field(default_factory=set)  # releases that have a page
    published: dict[tuple[str, str], FolderPublication] = field(default_factory=dict)  # by manifest and chip

    def build(self) -> BuiltSite:
        found = find(self.request.folder)
        with SiteFolder(self.request.out) as folder:
            return self._write(found, folder, Renderer())

    def _write(self, found: Found, folder: SiteFolder, renderer: Renderer) -> BuiltSite:
        expected = 2 + sum(len(o.releases) * 3 + len(o.nights[-self.request.nights :]) for o in found.outputs)
        comparisons = Comparisons(folder, renderer, self.troubles)
        self._read_publications(found)
        self.troubles += [f"{path}: a link, which is not followed" for path in found.linked]
        nights: list[NightPage] = []
        known: dict[str, Path] = {}
        for output in found.outputs:
            comparisons.nightly(output, self.request.nights)
            pages = NightReader(output, comparisons.by_digest).pages()
            nights += pages
            for release in output.releases:
                known[output.named(release.name)] = release
                self._write_release(folder, renderer, found, output, release, pages)
                self.watch(folder.pages, expected)
            self._add_unconverted(output, pages)
        for pair in self.request.pairs:
            comparisons.asked(pair, known)
        write_nights(folder, renderer, nights, self.request.nights)
        matrices = [make_matrix(model, rows) for (_, model), rows in sorted(self.models.items())]
        last = [
            page for o in found.outputs if (page := last_readable([n for n in nights if n.output is o])) is not None
        ]
        self.troubles[:] = [one.replace(f"{found.root}/", "") for one in self.troubles]
        index = renderer.page(
            "index.html.jinja",
            "index.html",
            matrices=matrices,
            last=last,
            nights=nights,
            pairs=list(comparisons.by_digest.values()),
            troubles=self.troubles,
        )
        folder.add("index.html", index)
        self.watch(folder.pages, folder.pages)
        folder.finish()
        return BuiltSite(
            folder.pages, folder.bytes, len(known), len(nights), len(comparisons.by_digest), tuple(self.troubles)
        )

    def _read_publications(self, found: Found) -> None:
        for path in found.publications:
            try:
                one = read_publication(found, path)
            except VerificationError as error:
                self.troubles.append(str(error))
                continue
            if one.trouble is not None:
                self.troubles.append(f"{path}: {one.trouble}")
            self.published[(one.manifest_sha256, one.chip)] = one

    def _write_release(
        self,
        folder: SiteFolder,
        renderer: Renderer,
        found: Found,
        output: OutputFolder,
        path: Path,
        nights: list[NightPage],
    ) -> None:
        try:
            operand = read_operand(path)
        except VerificationError as error:
            self.troubles.append(str(error))
            return
        facts = release_facts(operand, output.named(path.name))
        page = f"releases/{page_name(facts.name)}.html"
        news = {(row.entry.chip, row.entry.release) for row in (nights[-1].rows if nights else ()) if row.news}
        states, cells, starts = [], {}, []
        for chip in chip_order(self._chips(output, facts, nights)):
            state = chip_state(chip, output.report(path.name, chip), facts.manifest_sha256)
            if not state.weights_proved and (night := proved_by(nights, path.name, chip, facts.manifest_sha256)):
                state = proved_without_report(state, night.when)
            started = self._start(facts, operand, state)
            states.append((state, self._copy_report(folder, found, facts, state)))
            if started is not None:
                starts.append(started)
            published = self.published.get((facts.manifest_sha256, chip))
            cells[chip] = Cell(
                state=state.state,
                detail=state.detail,
                stacks=tuple(one.spec.stack or "" for one in facts.wanted if one.chip.id == chip),
                report=states[-1][1],
                card=_write_card(folder, renderer, facts, chip, started, published),
                published=published is not None,
                weights_proved=state.weights_proved,
                changed=(chip, path.name) in news,
            )
        changes, older = history(nights, path.name, self.request.nights)
        folder.add(
            page,
            renderer.page(
                "release.html.jinja",
                page,
                facts=facts,
                states=states,
                starts=starts,
                cells=cells,
                published={chip: one for chip in cells if (one := self.published.get((facts.manifest_sha256, chip)))},
                history=changes,
                older=older,
            ),
        )
        self.shown.add(facts.name)
        row = MatrixRow(facts.name, facts.format, facts.layout, human_bytes(facts.bytes), page, cells)
        self.models.setdefault((output.name, facts.model), []).append(row)

    def _chips(self, output: OutputFolder, facts: ReleaseFacts, nights: list[NightPage]) -> set[str]:
        named = {one.chip.id for one in facts.wanted} | set(output.validated_chips(facts.short))
        named |= {chip for sha256, chip in self.published if sha256 == facts.manifest_sha256 and chip}
        rows = nights[-1].rows if nights else ()
        return named | {row.entry.chip for row in rows if row.entry.release == facts.short}

    def _start(self, facts: ReleaseFacts, operand: Operand, state: ChipState) -> Start | None:
        """How the release is started on the chip; None if its recipe does not have the chip."""
        wanted = next((one for one in facts.wanted if one.chip.id == state.chip), None)
        return None if wanted is None or facts.recipe is None else start(wanted, operand, facts.recipe, state)

    def _copy_report(self, folder: SiteFolder, found: Found, facts: ReleaseFacts, state: ChipState) -> str | None:
        """Copy a report and its page into the site; where the page is."""
        if state.report is None or not (page := state.report.with_name(_PAGE_NAME)).is_file():
            return None
        if found.leads_out(page):
            self.troubles.append(f"{page}: a link that leads out of the folder, so it is not copied")
            return None
        name = f"reports/{page_name(facts.name, state.chip)}"
        folder.add(f"{name}/{_PAGE_NAME}", page.read_bytes())
        folder.add(f"{name}/{REPORT_NAME}", state.report.read_bytes())
        return f"{name}/{_PAGE_NAME}"

    def _add_unconverted(self, output: OutputFolder, nights: list[NightPage]) -> None:
        """Rows for releases that the last night has and the folder has not: a failure must not vanish."""
        last = last_readable(nights)
        there = {release.name for release in output.releases if output.named(release.name) in self.shown}
        rows: dict[str, dict[str, Cell]] = {}
        for row in () if last is None else last.rows:
            if row.entry.release not in there:
                ended = [f"{name}: {step.detail}" for name, step in row.entry.steps.items() if step.status != "done"]
                cell = Cell("not-converted", "; ".join(ended), (row.entry.stack or "",), changed=bool(row.news))
                rows.setdefault(row.entry.release, {})[row.entry.chip] = cell
        for release, cells in rows.items():
            assert last is not None
            assert last.night is not None
            format_name, _, layout = release.rpartition("-")
            made = MatrixRow(output.named(release), format_name, layout, "-", None, cells)
            self.models.setdefault((output.name, last.night.model), []).append(made)


def _write_card(
    folder: SiteFolder,
    renderer: Renderer,
    facts: ReleaseFacts,
    chip: str,
    started: Start | None,
    published: FolderPublication | None,
) -> str | None:
    """Write the page of the card that is published, or of the one that publishing would write now."""
    text = published.card if published is not None else started.card if started is not None else None
    if not text:
        return None
    page = f"cards/{page_name(facts.name, chip)}.html"
    metadata, body = card_parts(text)
    where = None if published is None else published.name
    folder.add(
        page,
        renderer.page(
            "card.html.jinja", page, facts=facts, chip=chip, metadata=metadata, body=body, published=where,
            release=f"releases/{page_name(facts.name)}.html",
        ),
    )  # fmt: skip
    return page
