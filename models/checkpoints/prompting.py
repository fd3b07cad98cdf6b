"""Renders problems with a model's chat template, up to where the model starts to think.

If the template leaves it to the model to open its thinking, the opening tag is added, so that every prompt ends inside
the thinking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.prompts import Prompt
from models.checkpoints.files import CheckpointError, first_line
from reasoning.records import Problem, TextPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = Problem(id="", prompt=(TextPart(text="Ann has 12 apples.\nHow many apples now?"),), answer="")
SYSTEM = "You solve problems."
STANDARD = {
    "messages",
    "add_generation_prompt",
    "tools",
    "documents",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "raise_exception",
    "strftime_now",
    "range",
    "namespace",
    "date_string",
    "builtin_tools",
    "custom_tools",
}
"""Common template variables, which do not control thinking."""
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""A template tag of transformers that marks the assistant's text; jinja2 cannot parse it."""


Content = str | list[dict[str, str]]
"""Of a message: text, or parts, where there are images."""


def content_of(problem: Problem, prompt: Prompt) -> Content:
    """The user message: the problem, the run's instruction, and the instruction of its data set."""
    advice = prompt.instruction_for(problem.choices is not None)
    after = (f"\n\n{advice}" if advice else "") + problem.instruction
    if not problem.images:
        return problem.text + after
    parts = [part.model_dump() for part in problem.prompt if part.type != "instruction"]
    parts = [{"type": "image"} if part["type"] == "image" else part for part in parts]
    return [*parts, {"type": "text", "text": after}] if after else parts


def text_of(content: Content) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class ChatPrompts:
    """Renders the prompts of one model. All methods raise CheckpointError if the template cannot be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path, prompt: Prompt):
        self._tokenizer, self._folder, self._prompt = tokenizer, folder, prompt

    def thinking(self, content: Content) -> str:
        """The prompt for a user message, with the thinking opened."""
        text = self._rendered(content, self._prompt.system)
        return text if self.opens_thinking else text + self._prompt.thinking.open

    def in_role(self, content: Content, role: str) -> str:
        """The prompt for a user message with the system message `role`; the thinking is not opened."""
        system = f"{self._prompt.system}\n\n{role}" if self._prompt.system else role
        text = self._rendered(content, system)
        before, opening, after = text.rpartition(self._prompt.thinking.open)
        return before if opening and not after.strip() else text

    def after_reply(self) -> str:
        """The text that the template writes after a reply; empty if it cannot render one."""
        turns = [*self._turns(SAMPLE.text, ""), *self._turns(SYSTEM, "")]
        turns[1]["role"] = "assistant"
        try:
            _, reply, after = self._write(turns, {"add_generation_prompt": False}).rpartition(SYSTEM)
        except CheckpointError:
            return ""
        return after if reply else ""

    @cached_property
    def opens_thinking(self) -> bool:
        """Whether the template opens the thinking."""
        return self._prompt.thinking.open in self.after_problem

    @cached_property
    def after_problem(self) -> str:
        """The text that the template writes after the user message."""
        content = text_of(content_of(SAMPLE, self._prompt))
        return self._rendered(content, self._prompt.system).rpartition(content.strip())[2]

    def check(self) -> None:
        """Raises CheckpointError for a template that turns thinking off."""
        close = self._prompt.thinking.close
        if close not in self.after_problem:
            return
        argument = self._argument_that_opens()
        advice = f"set prompt.template_arguments.{argument}" if argument else "none of its arguments turns thinking on"
        raise CheckpointError(
            f"{self._source}: the chat template closes the thinking ({self.after_problem!r} follows the problem), "
            f"so the model would not think; {advice}"
        )

    def _argument_that_opens(self) -> str:
        """A template argument that turns thinking on, as `name = value`; empty if there is none."""
        content, close = text_of(content_of(SAMPLE, self._prompt)), self._prompt.thinking.close
        for name in sorted(self.arguments):
            for value in (True, False):
                try:
                    text = self._write(self._messages(content, self._prompt.system), {name: value})
                except CheckpointError:
                    continue
                if close not in text.rpartition(content.strip())[2]:
                    return f"{name} = {str(value).lower()}"
        return ""

    @property
    def unread(self) -> list[str]:
        """Template arguments of the settings that this template ignores."""
        return sorted(set(self._prompt.template_arguments) - self.arguments)

    @cached_property
    def arguments(self) -> set[str]:
        """Arguments of the template other than the common ones."""
        from jinja2 import Environment, meta, nodes

        template = GENERATION.sub("", self._tokenizer.get_chat_template())
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
        return meta.find_undeclared_variables(tree) - STANDARD - own

    def _rendered(self, content: Content, system: str) -> str:
        return self._write(self._messages(content, system))

    def _messages(self, content: Content, system: str) -> list[dict[str, Any]]:
        if system and not self._takes_system:
            before = f"{system}\n\n"
            parts = [{"type": "text", "text": before}]
            return self._turns(before + content if isinstance(content, str) else parts + content, "")
        return self._turns(content, system)

    def _turns(self, content: Content, system: str) -> list[dict[str, Any]]:
        messages = [("system", system)] * bool(system) + [("user", content)]
        return [{"role": role, "content": self._as_taken(content)} for role, content in messages]

    def _as_taken(self, content: Content) -> Content:
        """Text as parts, where the template needs them."""
        return [{"type": "text", "text": content}] if isinstance(content, str) and self._takes_parts else content

    @cached_property
    def _takes_system(self) -> bool:
        """False for a template that rejects or ignores the system role."""
        try:
            return SYSTEM in self._write(self._turns(SAMPLE.text, SYSTEM))
        except CheckpointError:
            return False

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template needs message contents as lists of parts. Raises CheckpointError if it loses the problem
        both ways."""
        errors = []
        for content in (SAMPLE.text, [{"type": "text", "text": SAMPLE.text}]):
            try:
                text = self._write([{"role": "user", "content": content}])
            except CheckpointError as error:
                errors.append(error)
                continue
            if text.count(SAMPLE.text) == 1:
                return isinstance(content, list)
        if errors:
            raise errors[0]
        raise CheckpointError(
            f"{self._source}: the chat template does not write the problem's text; use the original template"
        )

    def _write(self, messages: list[dict[str, Any]], extra: Mapping[str, Any] | None = None) -> str:
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                f"{self._folder}/tokenizer_config.json: no chat_template, nor a chat_template.jinja; add "
                f"the original template, or use an instruction-tuned model"
            )
        arguments = {"add_generation_prompt": True, **self._prompt.template_arguments, **(extra or {})}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
        except Exception as error:  # a template may raise anything
            raise CheckpointError(f"{self._source}: the chat template fails: {first_line(error)}") from None

    @property
    def _source(self) -> Path:
        own = self._folder / "chat_template.jinja"
        return own if own.is_file() else self._folder / "tokenizer_config.json"
