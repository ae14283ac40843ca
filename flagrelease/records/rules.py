"""What a validation must show, fixed before it runs: in the recipe, under `validation`, and copied into the report.

The limits start from published practice and measurements; docs/validation.md gives the source of each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

ChatMode = Literal["chat", "thinking", "low", "high", "max"]
StageName = Literal["integrity", "weights", "logits", "benchmarks", "behaviour"]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order they run: cheapest first


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplayRules(_Strict):
    """What is run teacher-forced, and how much of it is kept. A baseline holds these, and is refused under others.

    Attributes:
        documents: of the set, at most (the first ones).
        tokens: of a document, at most; `long_tokens` of one whose kind is `long`.
        decode_tokens: at a document's end that are also fed one by one, through the cache.
        top: most likely tokens kept at each position; a smaller vocabulary is kept whole.
        chunk: tokens the engine takes in one step; the noise floor is another run with `floor_chunk`, and with
            `floor_rows` equal sequences side by side where tokens are fed one by one.
        layer_positions: of a document, evenly spread to its end, at which the states of all layers are kept.
    """

    documents: int = Field(64, ge=2)
    tokens: int = Field(512, ge=3)
    long_tokens: int = Field(16384, ge=3)
    decode_tokens: int = Field(128, ge=1)
    top: int = Field(1000, ge=2)
    chunk: int = Field(512, ge=1)
    floor_chunk: int = Field(192, ge=1)
    floor_rows: int = Field(3, ge=1)
    layer_positions: int = Field(1, ge=1)


class LogitsLimits(_Strict):
    """Limits of one comparison, KL(reference || tested). What is None does not decide.

    Attributes:
        mean_kl: the limit is this, or `floors` times the noise floor if that is more.
        tail_kl: at most `tail_share` of the tokens are above it: 0.1 and 0.001 say that the 99.9th percentile is at
            most 0.1.
        top1: share of tokens where both have the same most likely token; `top1_clear` where the reference's first is
            `margin` nats ahead of its second.
        perplexity: relative difference, either way.
    """

    mean_kl: float = Field(gt=0)
    floors: float | None = Field(None, gt=0)
    tail_kl: float | None = Field(None, gt=0)
    tail_share: float = Field(0.001, gt=0, lt=1)
    top1: float | None = Field(None, gt=0, lt=1)
    top1_clear: float = Field(gt=0, lt=1)
    margin: float = Field(gt=0)
    perplexity: float = Field(gt=0)

    def loosened(self, factor: float) -> LogitsLimits:
        """The same limits, every allowed difference `factor` times as large."""
        return self.model_copy(
            update={
                "mean_kl": self.mean_kl * factor,
                "tail_kl": None if self.tail_kl is None else self.tail_kl * factor,
                "top1": None if self.top1 is None else 1 - (1 - self.top1) * factor,
                "top1_clear": 1 - (1 - self.top1_clear) * factor,
                "perplexity": self.perplexity * factor,
            }
        )

    def widened(self, factor: float) -> LogitsLimits:
        """The same limits for an error whose mean KL may be `factor` times as large.

        The perplexity of text that the reference would write grows by the KL itself, so its limit grows as that of KL
        does, and so does what counts as a large KL; the share of such tokens stays. KL grows with the square of an
        error in the logits, and other tokens come first in proportion to the error: their share may grow by the root.
        """
        by_root = self.loosened(factor**0.5)
        return self.loosened(factor).model_copy(update={"top1": by_root.top1, "top1_clear": by_root.top1_clear})


class LayerLimits(_Strict):
    """Limits of `--layers`, of the medians over positions. They are a start, to be calibrated on the first floor.

    Attributes:
        last_error: relative RMS error of the streams behind the last layer.
        early_cosine, late_cosine: of the streams in the first and the second half of the layers.
        experts: mean share of a token's experts that both runs chose.
        floors: where the noise floor's difference, so many times, is more than a limit allows, it is the limit.
        step: a layer is where a fault sits if its error is this many times the error before it, the floor's, and
            `rounding`: that of one rounding to BF16; `fp8_rounding`, relative RMS, where the port rounds to FP8.
    """

    last_error: float = Field(0.02, gt=0)
    early_cosine: float = Field(0.9999, gt=0, lt=1)
    late_cosine: float = Field(0.999, gt=0, lt=1)
    experts: float = Field(0.99, gt=0, lt=1)
    floors: float = Field(3.0, gt=0)
    step: float = Field(3.0, gt=1)
    rounding: float = Field(2**-8, gt=0)
    fp8_rounding: float = Field(0.027, gt=0)

    def loosened(self, factor: float) -> LayerLimits:
        """For a port that rounds to FP8, as the native run: `factor` times the errors, its square in 1 - cosine."""
        return self.model_copy(
            update={
                "last_error": self.last_error * factor,
                "early_cosine": 1 - (1 - self.early_cosine) * factor**2,
                "late_cosine": 1 - (1 - self.late_cosine) * factor**2,
                "experts": 1 - (1 - self.experts) * factor,
                "rounding": self.fp8_rounding,
            }
        )


_OwnRounding = dict[Literal["int8", "fp8-channel", "mxfp8"], Annotated[float, Field(gt=0)]]
_SHARES: _OwnRounding = {"int8": 0.5, "fp8-channel": 0.75, "mxfp8": 1.25}  # measured: docs/validation-logits.md


class LogitsRules(_Strict):
    """Limits of the logits stage. KL in nats, shares and relative differences as fractions.

    Attributes:
        oracle: against the source decoded to BF16; decides for a port that rounds no activations.
        native: the same port against the source's native run.
        ratio: where KL(native || port) / KL(native || oracle) must be.
        rounded: a port that rounds activations as the native run does (`native`, `fp8` numerics) is compared with that
            run by `oracle`, this much looser.
        own_rounding: a port that rounds them in its own way is compared with the BF16 oracle by `oracle`, widened
            until its mean KL may be this share, by numerics, of KL(native || oracle): of the cost of native rounding.
        outlier_logp, outlier_margin: no token may differ by so many nats where the reference is so sure.
        min_documents, min_tokens, min_decode_tokens: with fewer scored a pass is not possible.
        confidence, resamples, seed: of the bootstrap by documents.
    """

    replay: ReplayRules = ReplayRules()
    oracle: LogitsLimits = LogitsLimits(
        mean_kl=2e-3, floors=3, tail_kl=0.1, top1=0.97, top1_clear=0.999, margin=0.5, perplexity=0.003
    )
    native: LogitsLimits = LogitsLimits(mean_kl=0.015, top1_clear=0.995, margin=2, perplexity=0.01)
    ratio: tuple[float, float] = (0.8, 1.25)
    rounded: float = Field(2.0, ge=1)
    own_rounding: Annotated[_OwnRounding, AfterValidator(lambda given: _SHARES | given)] = _SHARES
    outlier_logp: float = Field(5.0, gt=0)
    outlier_margin: float = Field(2.0, gt=0)
    min_documents: int = Field(64, ge=2)
    min_tokens: int = Field(16384, ge=1)
    min_decode_tokens: int = Field(4096, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)
    layers: LayerLimits = LayerLimits()


class BenchmarkRules(_Strict):
    """One benchmark: what is asked, how, how often, and the test that decides. Rates and margin are in points of 100.

    `preset` fills in what a recipe does not say; the report holds everything.

    Attributes:
        title: as people know it.
        kind: form of the data and of an answer: GPQA's columns and a letter, or `problem`, `answer` and an integer.
        dataset, files, revision: where the data is published; a user's own file is used in its place if one is given.
        prompt: the user's turn; `{question}` and (multiple choice) `{options}` are replaced, no other brace means
            anything. An option is a line "(A) text".
        mode: how the model answers: "chat" at once, "thinking" after as much thought as it gives by default, the others
            after thought of that effort, as its revision reads it (model/v4/efforts.yaml).
        temperature: above 0, since the test measures how much repeats of an answer differ.
        max_tokens: of an answer with its reasoning.
        seed: from which each answer's own is derived.
        margin: largest drop that still counts as aligned.
        repeats: answers to each question at the first look; at the last, `extension` times that many (1: one look).
        alpha: chance that a port exactly `margin` worse passes.
        most_invalid, most_truncated: above this rate of answers without the asked form, or cut off at `max_tokens`, on
            either side, there is no pass; neither if the sides' rates differ by more than `most_difference`.
    """

    preset: Literal["gpqa-diamond", "aime"] | None = None
    title: str = Field(min_length=1)
    kind: Literal["multiple-choice", "integer"]
    dataset: str = Field(min_length=1)
    files: tuple[str, ...] = Field(min_length=1)
    revision: str = Field(min_length=1)
    prompt: str
    mode: ChatMode
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    margin: float = Field(gt=0, lt=100)
    repeats: int = Field(ge=4)  # with fewer, the spread of an item's answers is too uncertain for the test's level
    extension: int = Field(default=2, ge=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    most_invalid: float = Field(default=2.0, ge=0, le=100)
    most_truncated: float = Field(default=2.0, ge=0, le=100)
    most_difference: float = Field(default=1.0, ge=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return BENCHMARK_PRESETS.get(preset, {}) | given if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _prompt_asks(self) -> BenchmarkRules:
        wanted = ("{question}", "{options}") if self.kind == "multiple-choice" else ("{question}",)
        for place in wanted:
            if self.prompt.count(place) != 1:
                raise ValueError(f"prompt must have {place} once")
        return self

    @property
    def most_repeats(self) -> int:
        """Answers to each question at the last look."""
        return self.repeats * self.extension


BENCHMARK_PRESETS: dict[str, dict[str, Any]] = {
    "gpqa-diamond": {
        "title": "GPQA Diamond",
        "kind": "multiple-choice",
        "dataset": "Idavidrein/gpqa",
        "files": ("gpqa_diamond.csv",),
        "revision": "main",
        "prompt": "Answer the following multiple choice question. Reason step by step, and put the letter of the right "
        "option within \\boxed{}, as in \\boxed{C}.\n\n{question}\n\n{options}",
        "mode": "thinking",
        "max_tokens": 65536,
        "margin": 2.0,
        "repeats": 8,
    },
    "aime": {
        "title": "AIME 2025",
        "kind": "integer",
        "dataset": "math-ai/aime25",
        "files": ("test.jsonl",),
        "revision": "main",
        "prompt": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "mode": "thinking",
        "max_tokens": 65536,
        "margin": 3.33,
        "repeats": 32,
    },
}


class BehaviourRules(_Strict):
    """How the behaviour stage asks its prompts, and how much more often than the native model a port may misbehave.

    Attributes:
        mode: how the model answers, as of a benchmark.
        prompts: of each kind (text, tool call, JSON), at most: the first ones.
        temperature: at 0 an answer is always the same, so it can be asked for once only.
        repeats: answers to each prompt, each with a seed of its own, derived from `seed`.
        max_tokens: of an answer with its reasoning.
        margin: largest excess over the native model's rate that still counts as aligned, in points of 100: of answers
            that loop, are cut off, break the chat format, miss the asked tool call or the asked JSON.
        alpha: chance that a port exactly `margin` worse passes.
    """

    mode: ChatMode = "chat"
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1)
    prompts: int = Field(default=16, ge=1)
    repeats: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0)
    margin: float = Field(default=10.0, gt=0, lt=100)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _repeats_differ(self) -> BehaviourRules:
        if self.temperature == 0 and self.repeats > 1:
            raise ValueError(
                f"temperature 0 gives the same answer {self.repeats} times, which would be counted as {self.repeats} "
                "answers: set repeats to 1, or a temperature above 0"
            )
        return self


class ValidationRules(_Strict):
    """All of them.

    Attributes:
        stages: a pass needs these.
        device: `chip`: logits, answers and behaviour count on the chip's own kind of device only; `any`: wherever they
            were computed, for a model that shows the tool and proves nothing of a chip.
        benchmarks: by name.
    """

    stages: tuple[StageName, ...] = Field(default=STAGES, min_length=1)
    device: Literal["chip", "any"] = "chip"
    logits: LogitsRules = LogitsRules()
    benchmarks: dict[str, BenchmarkRules] = {}
    behaviour: BehaviourRules = BehaviourRules()
