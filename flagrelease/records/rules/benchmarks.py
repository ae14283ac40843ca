"""Rules of one benchmark."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from flagrelease.records.rules.presets import BENCHMARK_PRESETS, Preset
from flagrelease.records.rules.strict import ChatMode, ExamKind, Strict


class PublishedScore(Strict):
    """A score that somebody else published for the native model, with what it takes to compare it.

    Attributes:
        score: in points of 100.
        mode, temperature, top_p: as of the benchmark; a figure with others is shown and not compared.
        repeats: answers to each question that it is the mean of; one where the source does not say.
        standard_error: as published, in points; without it that of independent answers is taken, which is larger.
        settings: what else matters to a reader, such as budget, stack and grading.
        source: where it stands.
    """

    score: float = Field(ge=0, le=100)
    mode: ChatMode
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    repeats: int = Field(default=1, ge=1)
    standard_error: float | None = Field(default=None, gt=0)
    settings: str = ""
    source: str = Field(min_length=1)


class BenchmarkRules(Strict):
    """One benchmark: what is asked, how, how often, and the test that decides. Rates and margin are in points of 100.

    `preset` fills in what a recipe does not say; the report holds everything.

    Attributes:
        preset: fills in the keys that a recipe leaves out.
        title: as people know it.
        kind: form of the data and of an answer: a letter (GPQA's columns), an integer (`problem`, `answer`), a number
            (GSM8K's), an expression (MATH-500's), code (HumanEval's or LiveCodeBench's), instructions (IFEval's).
        dataset, files, revision: where the data is published; a user's own file is used in its place if one is given.
        prompt: the user's turn; `{question}` and (multiple choice) `{options}` are replaced, no other brace means
            anything. An option is a line "(A) text".
        mode: how the model answers: "chat" at once, "thinking" after as much thought as it gives by default, the others
            after thought of that effort, as its revision reads it (model/v4/efforts.yaml).
        temperature, top_p: of the sampling; the temperature is above 0, since the test measures how much repeats of an
            answer differ.
        max_tokens: of an answer with its reasoning.
        seed: from which each answer's own is derived.
        margin: largest drop that still counts as aligned.
        repeats, extension: answers to each question at the first look; at the last, `extension` times that many (1: one
            look).
        alpha: chance that a port exactly `margin` worse passes.
        most_invalid, most_truncated: above this rate of answers without the asked form, or cut off at `max_tokens`, on
            either side, there is no pass; nor a fail where the native side is cut off: so small a budget does not
            measure the model.
        most_difference: nor is there one if the two sides' rates differ by more.
        questions: that the dataset has; with fewer there is no verdict.
        subset: a part of the dataset is meant, and has a verdict.
        published: native scores of others, as a check of the native side; they never help a release to pass.
    """

    preset: Preset | None = None
    title: str = Field(min_length=1)
    kind: ExamKind
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
    questions: int | None = Field(default=None, ge=1)
    subset: bool = False
    published: tuple[PublishedScore, ...] = ()

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
