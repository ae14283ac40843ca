"""One side of a benchmark: lm-eval asks, the answerer answers, the journal keeps; and both looks of the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from flagrelease.errors import ResourceError, VerificationError
from flagrelease.extras import remedy
from flagrelease.records.report import Benchmark
from flagrelease.validate.exams.answerer import Answerer, Ask, Reply
from flagrelease.validate.exams.comparison import compare, judge, plan_of, refuse_too_few
from flagrelease.validate.exams.exam import Exam, Item
from flagrelease.validate.exams.extraction import extract
from flagrelease.validate.exams.journal import AnswerJournal, JournalEntry, JournalHead, open_journal
from flagrelease.validate.exams.side import Answer, AnsweredItem, Asked, Side, refuse_other_exam
from flagrelease.validate.exams.suspicion import Suspicion

Progress = Callable[[int, int], None]  # answers that are there, answers that are wanted


def examine(
    exam: Exam, answerer: Answerer, subject: str, journal: Path, native: Side | None, progress: Progress
) -> tuple[Benchmark, Side]:
    """Ask until a look of the test decides, or the last has been taken, or the native side has no more answers.

    Raises:
        VerificationError: the sides cannot be compared, or the answers cannot be right.
        NetworkError, UsageError: as of the answerer.
        ResourceError: the journal belongs to another run.
    """
    looks = plan_of(exam.rules).looks
    if native is not None:
        refuse_other_exam(native, exam, answerer.efforts)
        refuse_too_few(exam.rules, native)
    for repeats in looks[:1] if native is None else [k for k in looks if k <= native.repeats]:
        side = run_side(exam, answerer, subject, journal, repeats, progress, native)
        if native is None or judge(exam.rules, native, side).decision.verdict != "cannot-tell":
            break
    return compare(exam.rules, native, side), side


def run_side(
    exam: Exam,
    answerer: Answerer,
    subject: str,
    journal: Path,
    repeats: int,
    progress: Progress,
    native: Side | None = None,
) -> Side:
    """`repeats` answers to each question; those in the journal are not asked for again.

    Args:
        subject: what answers: the SHA-256 of a release's manifest, or a model and its address.
        native: what the answers will be compared with, so that the first unequal prompt ends the run.

    Raises:
        As `examine`.
    """
    try:
        from flagrelease.validate.exams.harness.evaluation import evaluate_exam
    except ModuleNotFoundError as error:
        raise ResourceError(f"benchmarks need {error.name}: {remedy('eval')}") from error
    asked = Asked.of(exam, answerer.efforts)
    head = JournalHead(title=exam.rules.title, subject=subject, stack=answerer.stack, asked=asked)
    with open_journal(journal, head) as kept:
        lengths = {} if native is None else {item.id: item.prompt_tokens for item in native.items}
        examinee = _Examinee(exam, answerer, kept, progress, Suspicion(exam.rules, lengths, journal))
        shares = evaluate_exam(exam, repeats, examinee)
        side = _collect(exam, kept, head, repeats)
    ours = dict(zip((item.id for item in side.items), side.scores().mean(axis=1).tolist(), strict=True))
    if ours.keys() != shares.keys() or not all(math.isclose(ours[item], shares[item]) for item in ours):
        raise VerificationError(f"{exam.rules.title}: lm-eval's scores are not those of the answers; was it changed?")
    return side


class _Examinee:
    """Answers from the journal, and from the answerer what is not there."""

    def __init__(
        self, exam: Exam, answerer: Answerer, journal: AnswerJournal, progress: Progress, suspicion: Suspicion
    ) -> None:
        self._exam, self._answerer, self._journal = exam, answerer, journal
        self._progress, self._suspicion = progress, suspicion
        self._items = {item.id: item for item in exam.items}

    def __call__(self, asks: Sequence[Ask]) -> list[str]:
        """Texts that are nothing but the answers: with those of an earlier run they give the same score."""
        for ask in asks:
            if ask.prompt != self._items[ask.item].prompt:
                raise VerificationError(f"{ask.item}: lm-eval asks another question than the exam has; was it changed?")
        missing = [ask for ask in asks if _key(ask, self._items) not in self._journal.entries]
        there = len(asks) - len(missing)
        self._progress(there, len(asks))
        for ask, reply in self._answerer.answer(missing, self._exam.rules):
            self._suspicion.look_at(ask, reply)
            self._journal.add(self._entry(ask, reply))
            there += 1
            self._progress(there, len(asks))
        return [_canonical(self._journal.entries[_key(ask, self._items)].answer) for ask in asks]

    def _entry(self, ask: Ask, reply: Reply) -> JournalEntry:
        answer = Answer(
            value=extract(reply.text, self._exam.rules.kind),
            tokens=reply.tokens,
            finish=reply.finish,
            reasoned=reply.reasoned,
            whole_sha256=reply.whole_sha256,
        )
        item, repeat, prompt = _key(ask, self._items)
        tokens = reply.prompt_tokens
        return JournalEntry(item=item, repeat=repeat, prompt_sha256=prompt, prompt_tokens=tokens, answer=answer)


def _key(ask: Ask, items: dict[str, Item]) -> tuple[str, int, str]:
    return ask.item, ask.repeat, items[ask.item].prompt_sha256


def _canonical(answer: Answer) -> str:
    return "" if answer.value is None else f"\\boxed{{{answer.value}}}"


def _collect(exam: Exam, journal: AnswerJournal, head: JournalHead, repeats: int) -> Side:
    items = []
    for item in exam.items:
        entries = [journal.entries[item.id, repeat, item.prompt_sha256] for repeat in range(repeats)]
        if len(lengths := {entry.prompt_tokens for entry in entries}) != 1:
            raise VerificationError(f"{item.id}: the same prompt had {' and '.join(map(str, sorted(lengths)))} tokens")
        answered = AnsweredItem(
            id=item.id,
            prompt_sha256=item.prompt_sha256,
            prompt_tokens=lengths.pop(),
            correct=item.answer,
            answers=tuple(entry.answer for entry in entries),
        )
        items.append(answered)
    return Side(subject=head.subject, stack=head.stack, revision=exam.revision, asked=head.asked, items=tuple(items))
