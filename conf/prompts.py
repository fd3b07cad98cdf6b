"""What a model is shown beside a problem, and how it writes its thinking.

Knows: the makers' advice, thinking tags. Must not know: chat templates, tokens, problems.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, Tag, model_validator

from conf.base import Settings, type_or

Text = Annotated[str, Field(min_length=1)]
BUNDLED = "tiny"
"""The bundled model; it was taught its problems without an instruction."""
ADVICE = {
    "instruction": "Please reason step by step, and put your final answer within \\boxed{}.",
    "instruction_choices": "Please reason step by step, and put only the letter of the right option within \\boxed{}.",
}
"""What the makers of R1, Qwen3 and their like ask for, and what the answer check reads."""


class Tags(Settings):
    """Thinking between two texts, tokens of their own or not; the reply follows."""

    type: Literal["tags"] = "tags"
    open: Text = "<think>"
    """Begins the thinking. Where the chat template leaves it to the model, it is added to the prompt. Not from the
    paper."""
    close: Text = "</think>"
    """Ends the thinking. Not from the paper."""
    answer_open: str = ""
    """Begins the reply, where the model has a text for that (`<|begin_of_solution|>`). Not from the paper."""
    answer_close: str = ""
    """Ends the reply, where the model has a text for that. Not from the paper."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open!r}: nothing would tell thinking from reply")
        return self


class Harmony(Settings):
    """The channels of gpt-oss: thinking in `analysis`, the reply in `final`. Not from the paper."""

    type: Literal["harmony"] = "harmony"
    open: ClassVar[str] = "<|channel|>analysis<|message|>"
    opens_reply: ClassVar[str] = "<|channel|>final<|message|>"
    """A completion that begins with it has no thinking."""
    close: ClassVar[str] = f"<|end|><|start|>assistant{opens_reply}"
    answer_open: ClassVar[str] = ""
    answer_close: ClassVar[str] = ""


Thinking = Annotated[Annotated[Tags, Tag("tags")] | Annotated[Harmony, Tag("harmony")], type_or("tags")]


class Prompt(Settings):
    """What stands beside a problem in every prompt of a run: sampled, probed, trained on and examined alike."""

    instruction: str = ""
    """After the problem, a blank line between. For models other than the bundled one the default is the makers' advice
    (`ADVICE`). Not from the paper."""
    instruction_choices: str = ""
    """The same for problems with options. Not from the paper."""
    system: str = ""
    """The system message; before the problem where the chat template knows none. Not from the paper."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of the chat template, as enable_thinking = true. Not from the paper."""
    thinking: Thinking = Tags()
    """How the model writes its thinking. Not from the paper."""

    def advice(self, has_choices: bool) -> str:
        return self.instruction_choices if has_choices else self.instruction


class Prompted(Settings):
    """A run whose models are shown problems."""

    prompt: Prompt = Prompt()
    """What stands beside each problem, and how thinking is written."""

    @model_validator(mode="before")
    @classmethod
    def _advice(cls, values: Any) -> Any:
        """Written out, so that a run's saved settings show its prompts whole."""
        advice = {} if not isinstance(values, dict) or values.get("model", BUNDLED) == BUNDLED else ADVICE
        return _with_defaults(values, "prompt", advice)

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, values: Any) -> Any:
        seed = values.get("seed") if isinstance(values, dict) else None
        return _with_defaults(values, "engine", {"seed": seed % 2**32} if isinstance(seed, int) else {})


def _with_defaults(values: Any, section: str, defaults: dict[str, Any]) -> Any:
    """Raw settings in which a section's fields have these values where they are not given."""
    given = values.get(section, {}) if defaults else None
    return {**values, section: {**defaults, **given}} if isinstance(given, dict) else values


def validate_exit_text(name: str, exit_text: str, thinking: Tags | Harmony) -> None:
    """Raises ValueError for a text that is to end the thinking and does not."""
    if thinking.close not in exit_text:
        fitting = f"Now the answer is clear.\n{thinking.close}{thinking.answer_open}\nThe answer is \\boxed{{"
        raise ValueError(
            f"{name} ({exit_text!r}) does not end the thinking: it must hold {thinking.close!r}, as in {fitting!r}"
        )
