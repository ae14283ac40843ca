"""Drafts of the sequences that run: guessed after a step, verified with the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.chosen import Chosen
from flagrelease.engine.batch.orders import Decode, Draft
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.sequence import Running
from flagrelease.engine.sampling import Draws
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.transfer import send

SURVIVAL = 0.3  # drafts that are less likely to be accepted are not verified; docs/engine-internals.md, "Drafts"

Token = tuple[int, TokenScore | None]
# The tokens that are chosen from rows of logits [N, V], given the place of each: int64 [N].
ChooseRows = Callable[[Tensor, Draws, Sequence[tuple[Running, int]]], Tensor]


def worth_verifying(confidence: Sequence[float]) -> int:
    """How many drafts, from the left, are likely enough to be accepted.

    A draft counts only if all before it are right, so its chance is the product of the confidences up to its own. That
    product falls from left to right. Where it falls below SURVIVAL nothing that comes later is verified either.
    """
    chance = 1.0
    for place, each in enumerate(confidence):
        chance *= each
        if chance < SURVIVAL:
            return place
    return len(confidence)


class Guessing:
    """On the leader."""

    def __init__(self, runner: Runner, choose: ChooseRows) -> None:
        """`choose` takes the tokens, for the model and for the draft stages alike."""
        self._runner, self._choose = runner, choose
        self._device: torch.device = runner.model.head.device

    def verify(self, active: Mapping[int, Running]) -> list[tuple[Running, list[Token], Acceptance | None]]:
        """Run one step: the newest token and the drafts of every sequence whose prompt is read.

        Returns the tokens that each one goes on with: one, and one more for each draft that was right; and what became
        of its drafts, None if it was given none.
        """
        ready = [each for each in active.values() if each.ready]
        if not ready:
            return []
        rejected = tuple(each.row for each in ready for _ in range(each.rejected))
        feeds = tuple(active[row].feed if row in active else () for row in range(self._runner.rows))
        places = [(each, n) for each in ready for n in range(len(each.feed))]
        draws = Draws.of([each.sampler.at(each.generated + n) for each, n in places], self._device)
        index = send(torch.tensor([[each.row, n] for each, n in places], dtype=torch.int64), self._device).unbind(-1)
        logits = self._runner.run(Decode(feeds, rejected))[index]
        tops = [each.sampling.logprobs for each, _ in places]
        chosen = Chosen(self._runner.model.device, logits, self._choose(logits, draws, places), tops).wait()
        tokens: dict[int, list[Token]] = {each.row: [] for each in ready}
        for (each, _), token in zip(places, chosen, strict=True):
            tokens[each.row].append(token)
        return [(each, *_judge(each, tokens[each.row])) for each in ready]

    def draft(self, active: Mapping[int, Running], where: Callable[[Sequence[Running]], slice | Tensor]) -> None:
        """Guess the next tokens of every sequence that has gone on and may get more than one.

        `where` makes an index on the device of the sequences' rows.
        """
        going = [each for each in active.values() if each.followed and each.limit - each.generated > 1]
        if not going:
            return
        following = {each.row: each.followed for each in going}
        for each in going:
            each.followed, each.guessed = (), True

        def choose(place: int, logits: Tensor) -> Tensor:
            """Of drafts chosen with the keys of their places: the model's own choices there, if it agrees."""
            draws = Draws.of([each.sampler.at(each.generated + place) for each in going], self._device)
            tokens = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            tokens[rows] = self._choose(logits[rows], draws, [(each, place) for each in going])
            if depends:
                for each, token in zip(going, tokens[rows].tolist(), strict=True):
                    each.drafts += (token,)
            return tokens

        rows, depends = where(going), any(each.adjuster.active for each in going)
        likeliest = not depends and all(each.sampling.temperature == 0 for each in going)
        order = Draft(tuple(following.get(row, ()) for row in range(self._runner.rows)), likeliest)
        made = self._runner.draft(order, choose)
        confidence = None if made.confidence is None else made.confidence[rows].tolist()
        for n, (each, tokens) in enumerate(zip(going, made.tokens[rows].tolist(), strict=True)):
            count = len(tokens) if confidence is None else worth_verifying(confidence[n])
            # what it may not get is not verified: the cache may have no room for it
            each.drafts = tuple(tokens[: min(count, each.limit - each.generated - 1)])


def _judge(each: Running, tokens: list[Token]) -> tuple[list[Token], Acceptance | None]:
    """The first token is right. Each other one is if the drafts up to it, after which it was chosen, were."""
    wrong = [n for n, draft in enumerate(each.drafts) if tokens[n][0] != draft]
    right = min(wrong, default=len(each.drafts))
    each.rejected = len(each.drafts) - right
    seen = Acceptance.of_step(len(each.drafts), right) if each.guessed else None
    each.guessed = False
    return tokens[: right + 1], seen
