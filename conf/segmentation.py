"""How thinking text is split into segments."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from conf.base import Settings

Language = Literal["english", "chinese", "german"]
_RECHECKS = ("check", "double-check", "re-check", "verify", "confirm", "make sure", "test", "validate", "review")
_RESTARTS = (
    "reconsider",
    "recompute",
    "recalculate",
    "rethink",
    "re-read",
    "redo",
    "revisit",
    "re-examine",
    "re-evaluate",
    "go back",
    "start over",
    "step back",
    "think again",
    "try",
    "see if",
    "consider another",
    "cross-check",
    "sanity check",
)
MARKERS: dict[Language, tuple[str, ...]] = {
    "english": (
        "Wait",
        "Alternatively",
        "Hmm",
        "Hmmm",
        "Hold on",
        "Hang on",
        "Actually",
        "However",
        "Instead",
        "But let me",
        "Another way",
        "Another approach",
        "Another thought",
        "Another idea",
        "Another method",
        "Another possibility",
        "Another option",
        "Another angle",
        "Another check",
        "Another interpretation",
        "Alternative approach",
        "What if",
        "Maybe I",
        "Perhaps I",
        "On second thought",
        "Scratch that",
        "Oops",
        "That can't be",
        "That doesn't seem right",
        "That doesn't make sense",
        "That's not right",
        "Double-check",
        "Sanity check",
        "To verify",
        "To double-check",
        "To be sure",
        "Just to be sure",
        "Just to make sure",
        "Just to confirm",
        *(f"{subject} {verb}" for subject in ("Let me", "Let's") for verb in (*_RECHECKS, *_RESTARTS)),
        *(
            f"{subject} {verb}"
            for subject in ("I should", "I need to", "We should", "We need to")
            for verb in _RECHECKS
        ),
        "So the answer",
        "So the final answer",
        "Thus the answer",
        "Hence the answer",
        "Final answer",
        "Therefore",
    ),
    "chinese": (
        "等等",
        "等一下",
        "等下",
        "且慢",
        "慢着",
        "不对",
        "对了",
        "不过",
        "但是",
        "但",
        "然而",
        "可是",
        "嗯",
        "咦",
        "哦",
        "或者",
        "另外",
        "另一种",
        "另一个方法",
        "另一个思路",
        "换一种",
        "换个",
        "其实",
        "让我再",
        "让我检查",
        "让我验证",
        "让我确认",
        "让我重新",
        "让我们再",
        "让我们检查",
        "让我们验证",
        "让我们重新",
        "我再",
        "我们再",
        "再检查",
        "再验证",
        "再确认",
        "再试",
        "再算一",
        "再看一",
        "再想一",
        "再仔细",
        "重新检查",
        "重新计算",
        "重新审视",
        "重新考虑",
        "重新思考",
        "重新验证",
        "检查一下",
        "验证一下",
        "检验一下",
        "验算",
        "仔细想想",
        "反过来",
        "所以答案",
        "所以最终答案",
        "因此",
    ),
    "german": (
        "Moment",
        "Einen Moment",
        "Warte",
        "Halt",
        "Hm",
        "Hmm",
        "Hoppla",
        "Alternativ",
        "Andererseits",
        "Allerdings",
        "Jedoch",
        "Eigentlich",
        "Lass mich",
        "Lass uns",
        "Ich prüfe",
        "Ich überprüfe",
        "Prüfen wir",
        "Überprüfen wir",
        "Zur Kontrolle",
        "Zur Probe",
        "Zur Sicherheit",
        "Zur Überprüfung",
        "Noch einmal",
        "Nochmal",
        "Ein anderer Weg",
        "Ein anderer Ansatz",
        "Eine andere Idee",
        "Eine andere Möglichkeit",
        "Ein weiterer Gedanke",
        "Also ist die Antwort",
        "Daher",
        "Somit",
    ),
}
"""Phrases that open a new thinking pattern, by language. "Wait" and "Alternatively" are from the DTO paper; the others
are not from the paper."""


def markers_of(languages: tuple[Language, ...]) -> tuple[str, ...]:
    """Markers of all `languages`, without duplicates."""
    return tuple(dict.fromkeys(marker for name in languages for marker in MARKERS[name]))


class Markers(Settings):
    """Phrases that open a new thinking pattern (DTO, arXiv 2505.21765)."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"languages": "the key holds the markers that it selects"}

    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("english",)
    """Languages whose bundled markers are used. Not from the paper, which covers English only."""
    markers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default_factory=lambda known: markers_of(known.get("languages", ())), min_length=1
    )
    """A segment starts where a sentence or a line starts with one of these phrases, in any case, after Markdown,
    quotes, list bullets and interjections ("No, wait"). Overrides `languages`. `python -m flows run markers` shows
    which ones a model uses."""

    @model_validator(mode="after")
    def _languages_or_markers(self) -> Self:
        default = Markers.model_fields["languages"].default
        if self.languages != default and self.markers != markers_of(self.languages):
            raise ValueError("languages has no effect where markers are given; leave one of them out")
        return self


class Segmentation(Markers):
    """How thinking text is split into thinking patterns (DTO, arXiv 2505.21765)."""

    min_chars: Annotated[int, Field(ge=0)] = 12
    """Minimum length of a segment in characters; a shorter one is merged with the next. Fragments like "Hmm. Wait."
    would each cost a probe. Not from the paper."""
    max_chars: Annotated[int, Field(ge=100)] = 2000
    """Maximum length of a segment in characters; a longer one is split at paragraphs, else lines, sentences or words.
    Matters for models that use few markers. Not from the paper."""

    @model_validator(mode="after")
    def _min_chars_fits_max_chars(self) -> Self:
        if self.min_chars > self.max_chars // 4:
            raise ValueError(
                f"min_chars ({self.min_chars}) is over a quarter of max_chars ({self.max_chars}), the shortest part "
                f"that a long segment is split into; lower the first or raise the second"
            )
        return self
