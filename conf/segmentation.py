"""Where thinking is cut into segments."""

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
        *(f"{who} {deed}" for who in ("Let me", "Let's") for deed in (*_RECHECKS, *_RESTARTS)),
        *(f"{who} {deed}" for who in ("I should", "I need to", "We should", "We need to") for deed in _RECHECKS),
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
"""Openings of a new thinking pattern. "Wait" and "Alternatively" are the paper's; the others are not from the paper."""


def markers_of(languages: tuple[Language, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(marker for name in languages for marker in MARKERS[name]))


class Markers(Settings):
    """Which openings begin a new thinking pattern (papers, section B.1)."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"languages": "the markers that it chooses are in the key"}

    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("english",)
    """Whose `MARKERS` are taken. Not from the paper, which knows English only."""
    markers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default_factory=lambda known: markers_of(known.get("languages", ())), min_length=1
    )
    """A segment starts where a sentence or a line starts with one of these: in any case, behind Markdown, quotes, marks
    of lists and interjections ("No, wait"). Given, they replace those of `languages`; `python -m flows run markers`
    tells which a model really uses."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        default = Markers.model_fields["languages"].default
        if self.languages != default and self.markers != markers_of(self.languages):
            raise ValueError("languages has no effect where markers are given; leave one of them out")
        return self


class Segmentation(Markers):
    """Where thinking text is cut into thinking patterns (papers, section B.1)."""

    min_chars: Annotated[int, Field(ge=0)] = 12
    """A shorter segment is joined to the next one: "Hmm. Wait." is no thought yet, and every prefix is probed. Not from
    the paper."""
    max_chars: Annotated[int, Field(ge=100)] = 2000
    """A longer segment is split at paragraphs, else lines, sentences, words: models with few cues of their own would
    think in one piece. Not from the paper."""

    @model_validator(mode="after")
    def _parts_are_no_scraps(self) -> Self:
        if self.min_chars > self.max_chars // 4:
            raise ValueError(
                f"min_chars ({self.min_chars}) is over a quarter of max_chars ({self.max_chars}), and a part of a long "
                f"segment may be as short as that quarter; lower the first or raise the second"
            )
        return self
