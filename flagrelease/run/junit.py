"""A run as JUnit XML, which CI systems show: a suite for each release of a chip, a test for each stage.

A verdict against a release is a failure. What could not be done, and a validation that cannot tell, is an error: CI
must not show it as passed. A stage that was not reached is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from flagrelease.errors import VerificationError
from flagrelease.records.night import Night, NightChip, NightStep

_VERDICTS = ("failure", "error", "skipped")
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(night: Night, stages: Sequence[str]) -> bytes:
    """The document; `stages` are those that were asked for, in order."""
    root = ElementTree.Element("testsuites", name=_text(f"flagrelease run {night.recipe}"))
    suites = [_suite(night, chip, stages) for chip in night.chips]
    error = night.error
    if night.ended is None and error is None:
        error = "the run has not ended: it still works, or was killed; run the same command again to resume"
    if error is not None:
        suite = _begin(night, "flagrelease run")
        case = ElementTree.SubElement(suite, "testcase", classname="flagrelease.run", name="run", time="0")
        ElementTree.SubElement(case, "error", message=_text(error), type="refused")
        suites.append(suite)
    for suite in suites:
        _count(suite)
        root.append(suite)
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _begin(night: Night, name: str) -> ElementTree.Element:
    return ElementTree.Element("testsuite", name=name, timestamp=night.began.rstrip("Z"))


def _suite(night: Night, chip: NightChip, stages: Sequence[str]) -> ElementTree.Element:
    suite = _begin(night, f"{chip.chip} {chip.release}")
    for stage in stages:
        step = chip.steps.get(stage)
        seconds = 0.0 if step is None else step.seconds
        named = {"classname": f"flagrelease.{chip.chip}.{chip.release}", "name": stage, "time": f"{seconds:.3f}"}
        _judge(ElementTree.SubElement(suite, "testcase", named), step)
    return suite


def _judge(case: ElementTree.Element, step: NightStep | None) -> None:
    if step is None:
        ElementTree.SubElement(case, "skipped", message="not reached")
        return
    detail = _text(step.detail)
    if step.status not in ("done", "planned"):
        kind = "failure" if step.exit_code == VerificationError.exit_code else "error"
        ElementTree.SubElement(case, kind, message=detail, type=step.status).text = detail
    out = ElementTree.SubElement(case, "system-out")
    out.text = _text(f"{step.why or 'nothing to do'}: {step.detail}")


def _count(suite: ElementTree.Element) -> None:
    cases = list(suite)
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in _VERDICTS}
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _text(words: str) -> str:
    """Without the characters that XML has no place for."""
    return _NOT_IN_XML.sub("?", words)
