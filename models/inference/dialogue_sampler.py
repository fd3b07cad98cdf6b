"""Dialogues of two models in tokens (Long⊗Short, arXiv 2505.11827): prompts, turns and sampling.

Both models share one tokenizer, since they come from one base. A transcript consists of the sampled tokens, each turn
closed by the end token. Only what the protocol adds or repairs is encoded separately; those tokens are in no model's
loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from conf.long_short import Protocol
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.prompting import content_of
from models.inference.engine import Completion
from models.inference.scheduler import SamplingJob
from reasoning.dialogue import OPENING, STOPS, Dialogue, Speaker, Turn, force_answer, parse_turn
from reasoning.records import ModelCall, Problem
from reasoning.sampling_plans import Outcomes, SampleRange
from reasoning.token_ids import TokenIds

SPEAKERS = (Speaker.LONG, Speaker.SHORT)
"""The speaker of each scheduler of the rollout executor, by index."""


@dataclass(frozen=True, slots=True)
class TokenizedTurn:
    """A turn in tokens."""

    turn: Turn
    token_ids: TokenIds
    """As in the transcript, opening first."""
    own: tuple[bool, ...]
    """For each of `token_ids`: whether the model sampled it."""
    opening: int
    """Number of leading tokens that were part of the model's prompt."""
    sampled: int
    """Number of tokens that the model sampled, discarded ones included."""


def prompt_ids(model: Checkpoint, problem: Problem, role: str) -> TokenIds:
    """The prompt before the transcript, for a speaker with the system message `role`."""
    return model.prompt_encoded(model.prompts.in_role(content_of(problem, model.prompt), role))


class TurnCodec:
    """Encodes and decodes turns with one tokenizer."""

    def __init__(self, model: Checkpoint, protocol: Protocol):
        self._model, self._forced_answer_prefix = model, protocol.forced_answer_prefix
        self._roles = {Speaker.LONG: protocol.long_role, Speaker.SHORT: protocol.short_role}
        self.max_rounds, self.max_turn_tokens = protocol.max_rounds, protocol.max_turn_tokens
        self.longest = protocol.max_dialogue_tokens

    def prompts(self, problem: Problem) -> dict[Speaker, TokenIds]:
        """Each speaker's prompt before the transcript."""
        return {speaker: prompt_ids(self._model, problem, role) for speaker, role in self._roles.items()}

    def stream_decoder(self) -> Callable[[TokenIds], str]:
        """An incremental decoder of a turn: from new tokens to new text. Incomplete characters are held back; what
        cannot be decoded incrementally appears only in the finished turn."""
        stream, tokenizer = DecodeStream(skip_special_tokens=False), self._model.tokenizer.backend_tokenizer
        assert isinstance(tokenizer, Tokenizer)
        is_over = False

        def decode(token_ids: TokenIds) -> str:
            nonlocal is_over
            new = ""
            for token in token_ids:
                is_over = is_over or token in self._model.special_ids
                if not is_over:
                    try:
                        new += stream.step(tokenizer, token) or ""
                    except Exception:  # byte-fallback tokenizers raise a bare Exception for invalid UTF-8
                        is_over = True
            return new

        return decode

    def encode_turn(self, turn: Turn) -> tuple[TokenIds, TokenIds]:
        """Token ids of a turn that no model sampled: its opening, and the rest as a model would sample it."""
        opening = OPENING[turn.speaker]
        rest = str(turn).removeprefix(opening)
        return self._model.encode(opening), TokenIds((*self._model.encode(rest), self._model.end_id))

    def turn_prefix(self, dialogue: Dialogue) -> TokenIds:
        """Tokens that open the next turn."""
        prefix = self._forced_answer_prefix if dialogue.must_answer else ""
        return self._model.encode(OPENING[dialogue.next_speaker] + prefix)

    def decode_turn(self, dialogue: Dialogue, completion: Completion) -> TokenizedTurn:
        """Decodes the next turn from what its model sampled after the opening, usually up to the first tag."""
        # A special token ends the turn: it is invisible in the text, but could open another role in the chat template.
        text_ids = TokenIds(takewhile(lambda token: token not in self._model.special_ids, completion.token_ids))
        end = completion.token_ids[len(text_ids) :]
        has_ended = len(end) == 1 and end[0] in self._model.end_ids
        end = end if has_ended else TokenIds((self._model.end_id,))
        text_sampled = self._model.decode(text_ids)
        turn = (
            force_answer(self._forced_answer_prefix, text_sampled)
            if dialogue.must_answer
            else parse_turn(dialogue.next_speaker, text_sampled)
        )
        opening = self.turn_prefix(dialogue)
        text = turn.text.removeprefix(self._forced_answer_prefix) if turn.was_forced else turn.text
        # Sampling stops at the first tag, but the last token of a multi-token tag may reach beyond it.
        kept_text = text + turn.closing if turn.fault is None and not turn.was_forced else text
        kept = self._longest_prefix(text_ids, kept_text)
        repaired = self._model.encode((text + turn.closing)[len(self._model.decode(kept)) :])
        is_complete = has_ended and not repaired and kept == text_ids
        own = (False,) * len(opening) + (True,) * len(kept) + (False,) * len(repaired) + (is_complete,)
        return TokenizedTurn(turn, opening + kept + repaired + end, own, len(opening), len(completion.token_ids))

    def _longest_prefix(self, token_ids: TokenIds, text: str) -> TokenIds:
        """The longest prefix of `token_ids` that decodes to a prefix of `text`; `text` is a prefix of their decoded
        text."""
        count = bisect_right(
            range(len(token_ids) + 1), len(text), key=lambda size: len(self._model.decode(token_ids[:size]))
        )
        candidates = (token_ids[:size] for size in range(count - 1, -1, -1))
        # A character that is cut off or split over tokens decodes differently on its own.
        return next(ids for ids in candidates if text.startswith(self._model.decode(ids)))


@dataclass(frozen=True, slots=True)
class DialogueState:
    """A dialogue with its tokens."""

    dialogue: Dialogue
    turns: tuple[TokenizedTurn, ...] = ()

    @property
    def token_ids(self) -> TokenIds:
        """Token ids of the transcript."""
        return TokenIds.join(turn_tokens.token_ids for turn_tokens in self.turns)

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled by both models."""
        return sum(turn_tokens.sampled for turn_tokens in self.turns)

    def with_turn(self, turn_tokens: TokenizedTurn) -> DialogueState:
        return replace(self, dialogue=self.dialogue.with_turn(turn_tokens.turn), turns=(*self.turns, turn_tokens))

    def calls(self, speaker: Speaker, prompt: int) -> tuple[ModelCall, ...]:
        """The speaker's model calls; `prompt`: tokens of its prompt before the transcript."""
        calls, before = [], prompt
        for turn_tokens in self.turns:
            if turn_tokens.turn.speaker is speaker:
                calls.append(ModelCall(prompt_tokens=before + turn_tokens.opening, tokens=turn_tokens.sampled))
            before += len(turn_tokens.token_ids)
        return tuple(calls)

    def own_tokens(self, speaker: Speaker) -> list[bool]:
        """For each token of the transcript: whether `speaker` sampled it."""
        return [own and turn_tokens.turn.speaker is speaker for turn_tokens in self.turns for own in turn_tokens.own]


@dataclass(eq=False)
class _StateNode:
    """A dialogue state that one or more dialogues have reached."""

    state: DialogueState
    waiting: list[int] = field(default_factory=list)
    """Numbers of the dialogues that reached it, in order of arrival."""
    requested: int = 0


class DialogueSampler:
    """A `SamplingPlan`: several dialogues about one problem. Dialogues with the same transcript sample from one
    prompt."""

    def __init__(self, codec: TurnCodec, prompts: Mapping[Speaker, TokenIds], count: int):
        """`prompts`: each speaker's prompt before the transcript; `count`: number of dialogues."""
        self._codec, self._prompts = codec, prompts
        self.dialogues = [DialogueState(Dialogue(codec.max_rounds))] * count
        self._nodes: list[_StateNode] = []
        self._node_of: dict[TokenIds, int] = {}
        for number in range(count):
            self._put(number)

    def job(self, sampling: Sampling) -> SamplingJob:
        """The job that runs this plan, with the protocol's limit of tokens per turn. Its KV-cache estimate is two
        turns, which few dialogues exceed."""
        turn = sampling.model_copy(update={"max_tokens": self._codec.max_turn_tokens})
        prompt_tokens = max(map(len, self._prompts.values())) + 2 * self._codec.max_turn_tokens
        return SamplingJob(self, self.prompt, turn, tuple, prompt_tokens, self.scheduler_index, STOPS)

    @property
    def is_open(self) -> bool:
        return not all(state.dialogue.is_over for state in self.dialogues)

    def next_ranges(self) -> list[SampleRange]:
        new = []
        for index, node in enumerate(self._nodes):
            if len(node.waiting) > node.requested:
                new.append(SampleRange(index, node.requested, len(node.waiting) - node.requested))
                node.requested = len(node.waiting)
        return new

    def add(self, ask: SampleRange, outcomes: Outcomes) -> None:
        """`outcomes`: one completion for each dialogue of the sample range."""
        node = self._nodes[ask.prefix]
        for number, completion in zip(node.waiting[ask.first : ask.first + ask.count], outcomes, strict=True):
            assert isinstance(completion, Completion)
            self.dialogues[number] = self.dialogues[number].with_turn(
                self._codec.decode_turn(node.state.dialogue, completion)
            )
            if not self.dialogues[number].dialogue.is_over:
                self._put(number)

    def _put(self, number: int) -> None:
        """Adds the dialogue to the node of its current state."""
        state = self.dialogues[number]
        index = self._node_of.setdefault(state.token_ids, len(self._nodes))
        if index == len(self._nodes):
            self._nodes.append(_StateNode(state))
        self._nodes[index].waiting.append(number)

    def prompt(self, node: int) -> TokenIds:
        state = self._nodes[node].state
        return self._prompts[state.dialogue.next_speaker] + state.token_ids + self._codec.turn_prefix(state.dialogue)

    def scheduler_index(self, node: int) -> int:
        return SPEAKERS.index(self._nodes[node].state.dialogue.next_speaker)
