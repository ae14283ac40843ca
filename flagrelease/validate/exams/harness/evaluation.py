"""An exam run by lm-eval's evaluator: it builds the requests, an examinee answers them, it scores."""

from __future__ import annotations

import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from flagrelease.validate.exams.answerer import Ask, derive_seed
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.exams.harness.tasks import NAME, definition

Examinee = Callable[[Sequence[Ask]], list[str]]


class _ExamLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """Hands all requests to the examinee at once, each repeat with its own seed."""

    def __init__(self, exam: Exam, examinee: Examinee) -> None:
        super().__init__()
        self._exam, self._examinee = exam, examinee
        self._stderr = sys.stderr

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """lm-eval passes the same instance as often as it has repeats."""
        asks = []
        seen: Counter[int] = Counter()
        for request in requests:
            item, repeat = self._exam.items[request.doc_id].id, seen[request.doc_id]
            seen[request.doc_id] += 1
            asks.append(Ask(item, repeat, request.args[0], derive_seed(self._exam.rules, item, repeat)))
        with redirect_stderr(self._stderr):
            return self._examinee(asks)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """An exam is answered in words."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """An exam is answered in words."""
        raise NotImplementedError


def evaluate_exam(exam: Exam, repeats: int, examinee: Examinee) -> dict[str, float]:
    """Let lm-eval run the exam.

    Returns:
        Item id -> share of its answers that are right, by lm-eval's scoring.
    """
    model = _ExamLM(exam, examinee)
    with _quiet():
        tasks = TaskManager(include_defaults=False).load([definition(exam, repeats)])
        results = evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)
    return {sample["doc"]["id"]: sample["accuracy"] for sample in results["samples"][NAME]}


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's advice and progress bars are for users of its command line, not of ours; the examinee is heard."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
