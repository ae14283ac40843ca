"""The bundled engine as a model of lm-eval, for any of its tasks: `flagrelease` in its registry once this is imported.

    import flagrelease.validate.exams.harness.model
    lm_eval.simple_evaluate("flagrelease", "release=bf16-hf,numerics=bf16", tasks=[...], apply_chat_template=True)

Without a chat template a text is put behind one begin-of-sentence token; the template's text begins with its own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from flagrelease.errors import UsageError, VerificationError
from flagrelease.model.chats import encode_messages
from flagrelease.model.turns import BOS, EOS
from flagrelease.model.v4.efforts import Effort, Mode
from flagrelease.validate.seeds import seed_of

if TYPE_CHECKING:
    from flagrelease.engine.batch.scheduler import Scheduler
    from flagrelease.engine.numerics import NumericsName
    from flagrelease.engine.sampling import Sampling

_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
_MAX_GEN_TOKS = 256  # lm-eval's own default


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Around a scheduler. Repeats of a document have seeds of their own, derived from `seed`."""

    def __init__(self, scheduler: Scheduler, effort: Effort, seed: int) -> None:
        """`effort`: of the chat template, where lm-eval is told to apply one."""
        super().__init__()
        self.scheduler, self.effort, self.seed = scheduler, effort, seed
        (self._bos,) = scheduler.tokenizer.encode(BOS)
        (self._eos,) = scheduler.tokenizer.encode(EOS)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is."""
        return self._bos

    @property
    def tokenizer_name(self) -> str:
        """lm-eval keys its cache of requests with it."""
        return f"flagrelease-{self.effort.name}-{len(self.effort.preamble)}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """For lm-eval's records; V4 has rules and no template (flagrelease/model/v4/chat.py)."""
        return f"encoding_dsv4, effort {self.effort.name}, {self.effort.preamble!r}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, as text that begins with its begin-of-sentence token."""
        if not add_generation_prompt:
            raise UsageError("flagrelease has no chat template for a conversation that the model does not continue")
        return encode_messages(chat_history, self.effort).text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids with exactly one begin-of-sentence token, or with none if `add_special_tokens` is False.

        Raises:
            VerificationError: the text has more than one, or one that is not the first.
        """
        tokens = self.scheduler.tokenizer.encode(string)
        if tokens.count(self._bos) > 1 or self._bos in tokens[1:]:
            raise VerificationError("a text with more than one begin-of-sentence token, or with one inside")
        if add_special_tokens is False or tokens[:1] == [self._bos]:
            return tokens
        return [self._bos, *tokens]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context; repeats of a document have seeds of their own."""
        from flagrelease.engine.batch.scheduler import generate_each

        seen: Counter[tuple[str, int, int]] = Counter()
        work = []
        for request in requests:
            context, options = request.args
            key = request.task_name, request.doc_id, request.idx
            work.append((self.tok_encode(context), self._sampling(options, (*key, seen[key]))))
            seen[key] += 1
        texts = {place: generated.text for place, generated in generate_each(self.scheduler, work)}
        return [texts[place] for place in range(len(work))]

    def _sampling(self, options: dict[str, Any], key: tuple[object, ...]) -> Sampling:
        from flagrelease.engine.sampling import Sampling

        if unknown := options.keys() - _KNOWN:
            raise UsageError(f"gen_kwargs {', '.join(sorted(unknown))}: known are {', '.join(sorted(_KNOWN))}")
        temperature, samples = float(options.get("temperature", 0.0)), bool(options.get("do_sample"))
        if samples != (temperature > 0):  # lm-eval's models differ in which of the two they follow
            raise UsageError(f"gen_kwargs temperature {temperature:g} and do_sample {samples} contradict each other")
        until = options.get("until", [])
        return Sampling(
            temperature=temperature,
            top_p=float(options.get("top_p", 1.0)),
            seed=seed_of(self.seed, *key),
            max_tokens=int(options.get("max_gen_toks", _MAX_GEN_TOKS)),
            stop=(until,) if isinstance(until, str) else tuple(until),
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Teacher forcing: the log-probability of each continuation, and whether greedy decoding would write it."""
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        logits = self.scheduler.runner.model.logits([*context, *continuation])
        logp = logits[len(context) - 1 : -1].float().log_softmax(-1)
        own = [float(row[token]) for row, token in zip(logp, continuation, strict=True)]
        return sum(own), logp.argmax(-1).tolist() == continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text behind a begin-of-sentence token."""
        return [self._score([self._bos], self.tok_encode(r.args[0], add_special_tokens=False))[0] for r in requests]


@register_model("flagrelease")
class ReleaseLM(EngineLM):
    """The same, made from words on a command line: one model with `batch` sequences of `context` tokens."""

    def __init__(
        self,
        release: str,
        numerics: NumericsName = "native",
        dtype: str = "bfloat16",
        on: str = "auto",
        operators: str = "auto",
        context: int | None = None,
        batch: int = 16,
        mode: Mode = "chat",
        seed: int = 0,
        device: object = None,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        """Load a release.

        Args:
            on: the device, as `--device` of the package's own commands.
            device, batch_size, max_batch_size: what lm-eval gives to every model ("cuda:0" and 1 if nobody chose); not
                used.

        Raises:
            UsageError: under torchrun, where every rank would run all of lm-eval.
        """
        from flagrelease.engine.batch.scheduler import Scheduler
        from flagrelease.engine.session import Session

        session = Session.open(Path(release), numerics, dtype, on, operators)
        if session.model.groups.mp > 1:
            raise UsageError("this model of lm-eval is one process; for several ranks use `flagrelease serve`")
        super().__init__(
            Scheduler(session.runner(batch, context), session.tokenizer()), session.efforts().of(mode), seed
        )
