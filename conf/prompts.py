"""How problems are put into prompts, and how a model marks its thinking."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, Tag, model_validator

from conf.base import Settings, type_or

Text = Annotated[str, Field(min_length=1)]
BUNDLED = "tiny"
"""Name of the bundled language model."""
BUNDLED_MODELS = (BUNDLED, "tiny-vision")
"""Names of the bundled models, which are trained without an instruction."""
DEFAULT_INSTRUCTIONS = {
    "instruction": "Please reason step by step, and put your final answer within \\boxed{}.",
    "instruction_choices": "Please reason step by step, and put only the letter of the right option within \\boxed{}.",
}
"""Default instructions for other models: what the authors of R1, Qwen3 and similar models recommend, and what the
answer check can read."""


class Tags(Settings):
    """Thinking between an opening and a closing text, which may be special tokens or not. The reply follows."""

    type: Literal["tags"] = "tags"
    open: Text = "<think>"
    """Text that opens the thinking. Added to the prompt if the chat template leaves it to the model. Not from the
    paper."""
    close: Text = "</think>"
    """Text that closes the thinking. Not from the paper."""
    answer_open: str = ""
    """Text that opens the reply, for models that use one (`<|begin_of_solution|>`). Not from the paper."""
    answer_close: str = ""
    """Text that closes the reply, for models that use one. Not from the paper."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open!r}; thinking and reply could not be separated")
        return self


class Harmony(Settings):
    """The channels of gpt-oss: thinking in `analysis`, reply in `final`. Not from the paper."""

    type: Literal["harmony"] = "harmony"
    open: ClassVar[str] = "<|channel|>analysis<|message|>"
    reply_open: ClassVar[str] = "<|channel|>final<|message|>"
    """A completion that starts with this text has no thinking."""
    close: ClassVar[str] = f"<|end|><|start|>assistant{reply_open}"
    answer_open: ClassVar[str] = ""
    answer_close: ClassVar[str] = ""


class NoThinking(Settings):
    """A model that answers directly: nothing marks a thinking, and the whole completion is the reply."""

    type: Literal["none"] = "none"
    open: ClassVar[str] = ""
    close: ClassVar[str] = ""
    answer_open: ClassVar[str] = ""
    answer_close: ClassVar[str] = ""


Thinking = Annotated[Annotated[Harmony, Tag("harmony")] | Annotated[Tags, Tag("tags")], type_or("tags")]


class Prompt(Settings):
    """Text around each problem, the same for sampling, probing, training and evaluation."""

    instruction: str = ""
    """Instruction after the problem, separated by a blank line. Default for models other than the bundled one: the
    recommendation of the makers of R1 and Qwen3. Not from the paper."""
    instruction_choices: str = ""
    """The same for multiple-choice problems. Not from the paper."""
    system: str = ""
    """System message; placed before the problem if the chat template has no system role. Not from the paper."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Additional arguments of the chat template, such as `enable_thinking = true`. Not from the paper."""
    thinking: Thinking = Tags()
    """How the model marks its thinking. Not from the paper."""

    def instruction_for(self, has_choices: bool) -> str:
        return self.instruction_choices if has_choices else self.instruction


class Prompted(Settings):
    """A pipeline that prompts a model with problems."""

    prompt: Prompt = Prompt()
    """Text around each problem, and how the model marks its thinking."""

    @model_validator(mode="before")
    @classmethod
    def _fill_instructions(cls, values: Any) -> Any:
        """Fills in the default instructions, so that a run's saved settings show complete prompts."""
        is_other = isinstance(values, dict) and values.get("model", BUNDLED) not in BUNDLED_MODELS
        return _with_defaults(values, "prompt", DEFAULT_INSTRUCTIONS if is_other else {})

    @model_validator(mode="before")
    @classmethod
    def _seed_engine(cls, values: Any) -> Any:
        """Uses the run's seed for the engine unless `engine.seed` is given."""
        seed = values.get("seed") if isinstance(values, dict) else None
        return _with_defaults(values, "engine", {"seed": seed % 2**32} if isinstance(seed, int) else {})


def _with_defaults(values: Any, section: str, defaults: dict[str, Any]) -> Any:
    """`values` with `defaults` for fields of `section` that are not given."""
    given = values.get(section, {}) if defaults else None
    return {**values, section: {**defaults, **given}} if isinstance(given, dict) else values


def validate_exit_text(name: str, exit_text: str, thinking: Tags | Harmony) -> None:
    """Raises ValueError if `exit_text` does not close the thinking."""
    if thinking.close not in exit_text:
        fitting = f"Now the answer is clear.\n{thinking.close}{thinking.answer_open}\nThe answer is \\boxed{{"
        raise ValueError(
            f"{name} ({exit_text!r}) does not end the thinking: it must hold {thinking.close!r}, as in {fitting!r}"
        )
