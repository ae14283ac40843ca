"""A model sits an exam: answers come from the journal, or from the answerer and into the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flagrelease.errors import VerificationError
from flagrelease.validate.exams.answerer import Answerer, Ask, AskRules, Reply, derive_seed
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.exams.extraction import refuses
from flagrelease.validate.exams.journal import AnswerJournal, JournalEntry, JournalHead, open_journal
from flagrelease.validate.exams.marking.mark import Marker
from flagrelease.validate.exams.marking.marking import marking
from flagrelease.validate.exams.side import Answer, AnsweredItem, Asked, Side
from flagrelease.validate.exams.suspicion import Suspicion

Progress = Callable[[int, int], None]  # answers that are there, answers that are wanted


@contextmanager
def sitting(
    exam: Exam[AskRules],
    answerer: Answerer,
    subject: str,
    journal: Path,
    progress: Progress,
    native: Side | None,
    sandbox: str | None = None,
) -> Iterator[Sitting]:
    """Begin or resume: the journal is open, and locked, as long as the context is.

    Args:
        sandbox: the command that runs code, where answers are code.
        subject: what answers: the SHA-256 of a release's manifest, or a model and its address.
        native: what the answers will be compared with, so that the first unequal prompt ends the run.

    Raises:
        ResourceError: the journal belongs to another run, or a package is missing that marks answers of this kind.
        UsageError: answers are code, and no sandbox runs it.
    """
    asked = Asked.of(exam, answerer.efforts)
    head = JournalHead(title=exam.rules.title, subject=subject, stack=answerer.stack, asked=asked)
    lengths = {} if native is None else {item.id: item.prompt_tokens for item in native.items}
    with marking(exam.rules.kind, sandbox) as marker, open_journal(journal, head) as kept:
        yield Sitting(exam, answerer, marker, kept, head, progress, Suspicion(exam.rules, lengths, journal))


class Sitting:
    """One that is under way."""

    def __init__(
        self,
        exam: Exam[AskRules],
        answerer: Answerer,
        marker: Marker,
        journal: AnswerJournal,
        head: JournalHead,
        progress: Progress,
        suspicion: Suspicion,
    ) -> None:
        """As `sitting` makes it."""
        self._exam, self._answerer, self._marker, self._journal, self._head = exam, answerer, marker, journal, head
        self._progress, self._suspicion = progress, suspicion
        self._items = {item.id: item for item in exam.items}

    def __call__(self, asks: Sequence[Ask]) -> list[str]:
        """Texts that are nothing but the answers: with those of an earlier run they give the same score.

        Raises:
            VerificationError: a question is not the exam's, or the answers cannot be right.
            NetworkError, UsageError: as of the answerer.
        """
        for ask in asks:
            if ask.prompt != self._items[ask.item].prompt:
                raise VerificationError(f"{ask.item}: lm-eval asks another question than the exam has; was it changed?")
        missing = [ask for ask in asks if self._key(ask) not in self._journal.entries]
        there = len(asks) - len(missing)
        self._progress(there, len(asks))
        for ask, reply in self._answerer.answer(missing, self._exam.rules):
            self._suspicion.look_at(ask, reply)
            self._journal.add(self._entry(ask, reply))
            there += 1
            self._progress(there, len(asks))
        return [_canonical(self._journal.entries[self._key(ask)].answer) for ask in asks]

    def ask_all(self, repeats: int) -> Side:
        """Ask every question `repeats` times, in the order of the exam, and return the side.

        Raises:
            As `__call__`.
        """
        rules = self._exam.rules
        self(
            [
                Ask(item.id, repeat, item.prompt, derive_seed(rules, item.id, repeat))
                for item in self._exam.items
                for repeat in range(repeats)
            ]
        )
        return self.side(repeats)

    def side(self, repeats: int) -> Side:
        """The side with the first `repeats` answers to each question, which are in the journal.

        Raises:
            VerificationError: repeats of a prompt had other numbers of tokens.
        """
        items = []
        for item in self._exam.items:
            entries = [self._journal.entries[item.id, repeat, item.prompt_sha256] for repeat in range(repeats)]
            if len(lengths := {entry.prompt_tokens for entry in entries}) != 1:
                raise VerificationError(
                    f"{item.id}: the same prompt had {' and '.join(map(str, sorted(lengths)))} tokens"
                )
            answered = AnsweredItem(
                id=item.id,
                prompt_sha256=item.prompt_sha256,
                prompt_tokens=lengths.pop(),
                correct=item.answer,
                answers=tuple(entry.answer for entry in entries),
            )
            items.append(answered)
        return Side(
            subject=self._head.subject,
            stack=self._head.stack,
            revision=self._exam.revision,
            asked=self._head.asked,
            items=tuple(items),
        )

    def _key(self, ask: Ask) -> tuple[str, int, str]:
        return ask.item, ask.repeat, self._items[ask.item].prompt_sha256

    def _entry(self, ask: Ask, reply: Reply) -> JournalEntry:
        mark = self._marker.mark(self._items[ask.item], reply.text)
        answer = Answer(
            value=mark.value,
            undecided=mark.undecided,
            refused=mark.value is None and refuses(reply.text),
            tokens=reply.tokens,
            finish=reply.finish,
            reasoned=reply.reasoned,
            whole_sha256=reply.whole_sha256,
        )
        item, repeat, prompt = self._key(ask)
        tokens = reply.prompt_tokens
        return JournalEntry(item=item, repeat=repeat, prompt_sha256=prompt, prompt_tokens=tokens, answer=answer)


def _canonical(answer: Answer) -> str:
    return "" if answer.value is None else f"\\boxed{{{answer.value}}}"
