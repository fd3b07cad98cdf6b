"""Dialogues of two models in tokens (Long⊗Short, papers, section C.4): what each is shown, and what is heard of it.

Knows: the protocol, a tokenizer, which dialogues wait for whom. Must not know: right answers, rewards, who serves.

Both models share one tokenizer, since they come from one base. A transcript is made of the very tokens that were drawn,
each turn ended by the end token; only what the protocol adds or mends is encoded anew, and is nobody's own.
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
from models.inference.scheduler import Job
from reasoning.dialogue import OPENING, STOPS, Dialogue, Speaker, Turn, force_answer, parse_turn
from reasoning.records import ModelCall, Problem
from reasoning.sampling_plans import Outcomes, SampleRange

SPEAKERS = (Speaker.LONG, Speaker.SHORT)
"""Who draws at which desk of the rollout engine."""
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedTurn:
    """A turn in tokens."""

    turn: Turn
    token_ids: TokenIds
    """As it stands in the transcript, its opening first."""
    own: tuple[bool, ...]
    """Which of them its model drew."""
    opening: int
    """Its first tokens, which its model was shown."""
    drawn: int
    """Tokens that its model drew, heard or not."""


def prompt_ids(model: Checkpoint, problem: Problem, role: str) -> TokenIds:
    """What the speaker of a role is shown before the transcript."""
    return model.prompt_encoded(model.prompts.in_role(content_of(problem, model.prompt), role))


class TurnCodec:
    """Turns in the tokens of one tokenizer."""

    def __init__(self, model: Checkpoint, protocol: Protocol):
        self._model, self._forced_answer_prefix = model, protocol.forced_answer_prefix
        self._roles = {Speaker.LONG: protocol.long_role, Speaker.SHORT: protocol.short_role}
        self.max_rounds, self.max_turn_tokens = protocol.max_rounds, protocol.max_turn_tokens
        self.longest = protocol.max_dialogue_tokens

    def prompts(self, problem: Problem) -> dict[Speaker, TokenIds]:
        """What each speaker is shown before the transcript."""
        return {speaker: prompt_ids(self._model, problem, role) for speaker, role in self._roles.items()}

    def stream_decoder(self) -> Callable[[TokenIds], str]:
        """Reads a turn's tokens as they come: each call returns what is new. A character waits until it is whole; what
        cannot be read piece by piece is not new before the turn is whole."""
        stream, tokenizer = DecodeStream(skip_special_tokens=False), self._model.tokenizer.backend_tokenizer
        assert isinstance(tokenizer, Tokenizer)
        is_over = False

        def listen(token_ids: TokenIds) -> str:
            nonlocal is_over
            new = ""
            for token in token_ids:
                is_over = is_over or token in self._model.special_ids
                if not is_over:
                    try:
                        new += stream.step(tokenizer, token) or ""
                    except Exception:  # bytes that are no text, of tokenizers that fall back to bytes; a bare Exception
                        is_over = True
            return new

        return listen

    def encode_turn(self, turn: Turn) -> tuple[TokenIds, TokenIds]:
        """A turn that no model drew: its opening, and the rest as a model would have drawn it."""
        opening = OPENING[turn.speaker]
        rest = str(turn).removeprefix(opening)
        return self._model.encode(opening), (*self._model.encode(rest), self._model.end_id)

    def turn_prefix(self, dialogue: Dialogue) -> TokenIds:
        """What the next turn begins with."""
        lead = self._forced_answer_prefix if dialogue.must_answer else ""
        return self._model.encode(OPENING[dialogue.next_speaker] + lead)

    def decode_turn(self, dialogue: Dialogue, completion: Completion) -> TokenizedTurn:
        """The next turn, from what its model drew after the opening, as a rule up to the first tag."""
        # A special token, which no text shows, ends what is heard: it may open another's turn in a model's template.
        said_ids = tuple(takewhile(lambda token: token not in self._model.special_ids, completion.token_ids))
        end = completion.token_ids[len(said_ids) :]
        has_ended = len(end) == 1 and end[0] in self._model.end_ids
        end = end if has_ended else (self._model.end_id,)
        said = self._model.decode(said_ids)
        turn = (
            force_answer(self._forced_answer_prefix, said)
            if dialogue.must_answer
            else parse_turn(dialogue.next_speaker, said)
        )
        opening = self.turn_prefix(dialogue)
        text = turn.text.removeprefix(self._forced_answer_prefix) if turn.was_forced else turn.text
        # Drawing ends with the first tag, but where a tag is made of several tokens the last may reach beyond it.
        heard_of = text + turn.closing if turn.fault is None and not turn.was_forced else text
        kept = self._within(said_ids, heard_of)
        mended = self._model.encode((text + turn.closing)[len(self._model.decode(kept)) :])
        is_whole = has_ended and not mended and kept == said_ids
        own = (False,) * len(opening) + (True,) * len(kept) + (False,) * len(mended) + (is_whole,)
        return TokenizedTurn(turn, opening + kept + mended + end, own, len(opening), len(completion.token_ids))

    def _within(self, token_ids: TokenIds, text: str) -> TokenIds:
        """The first tokens, as far as they are whole within `text`, which begins what they say."""
        count = bisect_right(
            range(len(token_ids) + 1), len(text), key=lambda size: len(self._model.decode(token_ids[:size]))
        )
        wholes = (token_ids[:size] for size in range(count - 1, -1, -1))
        # A character that was cut off, or is split over tokens, reads otherwise than it would whole.
        return next(ids for ids in wholes if text.startswith(self._model.decode(ids)))


@dataclass(frozen=True, slots=True)
class DialogueState:
    """A dialogue with its tokens."""

    dialogue: Dialogue
    lines: tuple[TokenizedTurn, ...] = ()

    @property
    def token_ids(self) -> TokenIds:
        """Of the transcript."""
        return tuple(token for line in self.lines for token in line.token_ids)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that both models drew."""
        return sum(line.drawn for line in self.lines)

    def with_turn(self, line: TokenizedTurn) -> DialogueState:
        return replace(self, dialogue=self.dialogue.with_turn(line.turn), lines=(*self.lines, line))

    def calls(self, speaker: Speaker, prompt: int) -> tuple[ModelCall, ...]:
        """The speaker's turns; `prompt`: tokens of what it is shown before the transcript."""
        calls, before = [], prompt
        for line in self.lines:
            if line.turn.speaker is speaker:
                calls.append(ModelCall(prompt_tokens=before + line.opening, tokens=line.drawn))
            before += len(line.token_ids)
        return tuple(calls)

    def own_tokens(self, speaker: Speaker) -> list[bool]:
        """Which tokens of the transcript `speaker` drew."""
        return [own and line.turn.speaker is speaker for line in self.lines for own in line.own]


@dataclass(eq=False)
class _Place:
    """A state that dialogues are in: as many have passed it as were asked for."""

    state: DialogueState
    waiting: list[int] = field(default_factory=list)
    """Dialogues in it, in the order in which they came."""
    asked: int = 0


class DialogueSampler:
    """A `Plan`: several dialogues about one problem. Those that have gone alike so far draw samples of one prompt."""

    def __init__(self, codec: TurnCodec, prompts: Mapping[Speaker, TokenIds], count: int):
        """`prompts`: what each speaker is shown before the transcript."""
        self._codec, self._prompts = codec, prompts
        self.dialogues = [DialogueState(Dialogue(codec.max_rounds))] * count
        self._places: list[_Place] = []
        self._place_of: dict[TokenIds, int] = {}
        for number in range(count):
            self._put(number)

    def job(self, sampling: Sampling) -> Job:
        """What carries it out; a turn's limit of tokens is the protocol's. Few dialogues need more room than that of
        two turns."""
        turn = sampling.model_copy(update={"max_tokens": self._codec.max_turn_tokens})
        room = max(map(len, self._prompts.values())) + 2 * self._codec.max_turn_tokens
        return Job(self, self.prompt, turn, tuple, room, self.scheduler_index, STOPS)

    @property
    def is_open(self) -> bool:
        return not all(state.dialogue.is_over for state in self.dialogues)

    def next_ranges(self) -> list[SampleRange]:
        new = []
        for index, place in enumerate(self._places):
            if len(place.waiting) > place.asked:
                new.append(SampleRange(index, place.asked, len(place.waiting) - place.asked))
                place.asked = len(place.waiting)
        return new

    def add(self, ask: SampleRange, outcomes: Outcomes) -> None:
        """`outcomes`: completions, one for each dialogue that the ask was for."""
        place = self._places[ask.prefix]
        for number, completion in zip(place.waiting[ask.first : ask.first + ask.count], outcomes, strict=True):
            assert isinstance(completion, Completion)
            self.dialogues[number] = self.dialogues[number].with_turn(
                self._codec.decode_turn(place.state.dialogue, completion)
            )
            if not self.dialogues[number].dialogue.is_over:
                self._put(number)

    def _put(self, number: int) -> None:
        """Where the dialogue now waits."""
        state = self.dialogues[number]
        index = self._place_of.setdefault(state.token_ids, len(self._places))
        if index == len(self._places):
            self._places.append(_Place(state))
        self._places[index].waiting.append(number)

    def prompt(self, place: int) -> TokenIds:
        state = self._places[place].state
        return self._prompts[state.dialogue.next_speaker] + state.token_ids + self._codec.turn_prefix(state.dialogue)

    def scheduler_index(self, place: int) -> int:
        return SPEAKERS.index(self._places[place].state.dialogue.next_speaker)
