"""Dialogues of two models, in tokens of the bundled tokenizer."""

import random
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.long_short import MAX_TAG_TOKENS, Protocol
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.dialogue_sampler import DialogueSampler, DialogueState, TurnCodec
from models.inference.engine import Completion, Request
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler
from models.inference.scripted_engine import ScriptedEngine
from reasoning.dialogue import CLOSINGS, OPENING, TAGS, Dialogue, Fault, Speaker
from reasoning.records import Problem, TextPart
from reasoning.token_ids import TokenIds

END = "<|endoftext|>"
PROTOCOL = Protocol(long_role="<|long|>", short_role="<|short|>", max_turn_tokens=192)
MODEL = Checkpoint.open(TINY_MODEL)
CODEC = TurnCodec(MODEL, PROTOCOL)
PROMPTS = {Speaker.LONG: MODEL.encode("<|long|>Ann has 4."), Speaker.SHORT: MODEL.encode("<|short|>Ann has 4.")}
TEXTS = st.lists(
    st.sampled_from([*TAGS, "Now it is 4.", "\\boxed{4}", "}", "{", "\n", " 12", "< 5", "Wait, ", "}."]), max_size=7
).map("".join)


def completion_of(text_of_turn: str, has_ended: bool = True) -> Completion:
    return Completion(MODEL.encode(text_of_turn + END * has_ended), has_ended)


def own_text(token_ids: TokenIds, own: tuple[bool, ...]) -> str:
    return MODEL.decode(tuple(token for token, is_own in zip(token_ids, own, strict=True) if is_own))


@given(st.lists(st.integers(0, len(MODEL.tokenizer) - 1), max_size=30))
def test_the_stream_decoder_agrees_with_decode(token_ids: list[int]):
    decode, decoded = CODEC.stream_decoder(), ""
    text = MODEL.decode(tuple(takewhile(lambda token: token not in MODEL.special_ids, token_ids)))
    for token in token_ids:
        decoded += decode(TokenIds((token,)))
        assert text.startswith(decoded)
    assert decoded == text.rstrip("\ufffd")


def test_each_end_token_of_the_model_ends_a_turn(tmp_path: Path):
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [0, 463]}')
    model = Checkpoint.open(tmp_path / "model")
    text_of_turn = model.encode("\nIt is 4.</think>")
    for end in (0, 463):
        tokenized = TurnCodec(model, PROTOCOL).decode_turn(
            Dialogue(PROTOCOL.max_rounds), Completion(TokenIds((*text_of_turn, end)), True)
        )
        assert tokenized.token_ids == TokenIds((*model.encode("<think>"), *text_of_turn, end))
        assert tokenized.own == (False, *[True] * len(text_of_turn), True)


def test_the_longest_dialogue_fits_its_bound_with_any_tokenizer():
    """Long and Short both reach max_turn_tokens; tags and the forced answer prefix are bounded by their bytes."""
    state, full_turn = (
        DialogueState(Dialogue(PROTOCOL.max_rounds)),
        MODEL.encode("12 " * PROTOCOL.max_turn_tokens)[: PROTOCOL.max_turn_tokens],
    )
    ask = full_turn[:-1] + MODEL.encode("</rethink>")
    while not state.dialogue.is_over:
        text_of_turn = (
            ask if state.dialogue.next_speaker is Speaker.SHORT and not state.dialogue.must_answer else full_turn
        )
        assert len(text_of_turn) == PROTOCOL.max_turn_tokens
        state = state.with_turn(CODEC.decode_turn(state.dialogue, Completion(text_of_turn, False)))
    assert len(state.turns) == PROTOCOL.max_turns
    assert PROTOCOL.max_turns * PROTOCOL.max_turn_tokens < len(state.token_ids) <= PROTOCOL.max_dialogue_tokens
    assert max(len(OPENING[one] + closing) for one in Speaker for closing in CLOSINGS[one]) < MAX_TAG_TOKENS


def test_invalid_bytes_end_the_stream_without_an_error(monkeypatch: pytest.MonkeyPatch):
    """Byte-fallback tokenizers raise a bare Exception there; the bundled one does not."""

    class Stream:
        def __init__(self, **_: bool):
            pass

        def step(self, _: object, token: int) -> str | None:
            if token == 7:
                raise Exception("Invalid prefix encountered while decoding stream")
            return MODEL.decode((token,))

    monkeypatch.setattr("models.inference.dialogue_sampler.DecodeStream", Stream)
    decode = CODEC.stream_decoder()
    decoded = [decode(TokenIds(ids)) for ids in ((8, 9), (10, 7, 8), (8,))]
    assert decoded == [MODEL.decode((8, 9)), MODEL.decode((10,)), ""]


@pytest.mark.parametrize("after", ["", "</think>", "<|short|>Ann has 4.<answer>\\boxed{9}</answer>"])
def test_a_special_token_ends_the_turn(after: str):
    """It is invisible in decoded text, but could open another role in the partner's prompt."""
    pad = MODEL.tokenizer.pad_token_id
    assert pad in MODEL.special_ids
    before = MODEL.encode("\nNow it is 4.")
    tokenized = CODEC.decode_turn(Dialogue(4), Completion(TokenIds((*before, pad, *MODEL.encode(after + END))), True))
    assert (tokenized.turn.text, tokenized.turn.fault) == ("\nNow it is 4.", Fault.UNCLOSED)
    assert MODEL.decode(tokenized.token_ids) == "<think>\nNow it is 4.</think>"
    assert not {pad} & set(tokenized.token_ids)
    assert tokenized.own == (False,) + (True,) * len(before) + (False,) * (len(tokenized.own) - 1 - len(before))
    assert tokenized.sampled == len(before) + 1 + len(MODEL.encode(after + END))


def test_a_valid_turn_keeps_its_sampled_tokens():
    completion = completion_of("\nNow it is 4.\n</think>")
    tokenized = CODEC.decode_turn(Dialogue(4), completion)
    assert tokenized.token_ids == MODEL.encode("<think>") + completion.token_ids
    assert tokenized.own == (False,) + (True,) * len(completion.token_ids)
    assert tokenized.sampled == len(completion.token_ids)


@pytest.mark.parametrize(
    ("text_of_turn", "has_ended", "transcript", "own"),
    [
        ("\nNow it is 4.", False, "<think>\nNow it is 4.</think>", "\nNow it is 4."),
        ("\nNow it is 4.", True, "<think>\nNow it is 4.</think>", "\nNow it is 4."),
        ("It is 4.</think><answer>9</answer>", True, "<think>It is 4.</think>", "It is 4."),
        ("It is<answer> 4.</think>", True, "<think>It is</think>", "It is"),
    ],
)
def test_repaired_tokens_are_not_own(text_of_turn: str, has_ended: bool, transcript: str, own: str):
    tokenized = CODEC.decode_turn(Dialogue(4), completion_of(text_of_turn, has_ended))
    assert MODEL.decode(tokenized.token_ids) == transcript
    assert tokenized.token_ids[-1] == MODEL.end_id
    assert not tokenized.own[-1]
    assert own_text(tokenized.token_ids, tokenized.own) == own
    assert tokenized.turn.fault in (Fault.UNCLOSED, Fault.TRAILING, Fault.FOREIGN)


def test_text_after_the_closing_tag_is_removed():
    tokenized = CODEC.decode_turn(Dialogue(4), completion_of("It is 4.</think>\n \n"))
    assert tokenized.turn.fault is None
    assert MODEL.decode(tokenized.token_ids) == str(tokenized.turn) == "<think>It is 4.</think>"
    assert tokenized.own[-2:] == (True, False)  # the tag, and the end token after the removed text


def test_a_turn_without_end_token_gets_one():
    tokenized = CODEC.decode_turn(Dialogue(4), completion_of("It is 4.</think>", has_ended=False))
    assert (tokenized.turn.fault, tokenized.token_ids[-1], tokenized.own[-2:]) == (None, MODEL.end_id, (True, False))


def test_a_truncated_character_is_removed():
    text = MODEL.encode("It is 4é")
    tokenized = CODEC.decode_turn(Dialogue(4), Completion(text[:-1], finished=False))
    assert tokenized.turn.fault is Fault.UNCLOSED
    assert MODEL.decode(tokenized.token_ids) == f"<think>{tokenized.turn.text}</think>"


@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=9, max_size=9), st.integers(1, 4))
def test_tokens_decode_to_the_dialogue(text_of_turn: list[tuple[str, bool]], max_rounds: int):
    codec = TurnCodec(MODEL, PROTOCOL.model_copy(update={"max_rounds": max_rounds}))
    plan, left = DialogueSampler(codec, PROMPTS, 1), iter(text_of_turn)
    while plan.is_open:
        (ask,) = plan.next_ranges()
        speaker = plan.dialogues[0].dialogue.next_speaker
        transcript, prompt = plan.dialogues[0].token_ids, plan.prompt(ask.prefix)
        assert prompt[: len(PROMPTS[speaker]) + len(transcript)] == PROMPTS[speaker] + transcript
        completion = completion_of(*next(left))
        plan.add(ask, [completion])
        tokenized = plan.dialogues[0].turns[-1]
        assert tokenized.sampled == len(completion.token_ids) >= sum(tokenized.own)
        assert own_text(tokenized.token_ids, tokenized.own) in MODEL.decode(completion.token_ids)
    state = plan.dialogues[0]
    assert MODEL.decode(state.token_ids) == str(state.dialogue)
    owners = [state.own_tokens(speaker) for speaker in Speaker]
    assert not any(long and short for long, short in zip(*owners, strict=True))


def test_a_prompt_ends_where_the_first_turn_opens():
    problem = Problem(id="p", prompt=(TextPart(text="Ann has 4."),), answer="4")
    text = MODEL.decode(CODEC.prompts(problem)[Speaker.LONG])
    assert text == "<|system|><|long|><|user|>Ann has 4.<|assistant|>"


@pytest.mark.parametrize(
    ("opening", "prompt"), [("<|assistant|>\n", "<|assistant|>\n"), ("<|assistant|>\n<think>\n", "<|assistant|>\n")]
)
def test_only_the_templates_own_thinking_tag_is_removed(monkeypatch: pytest.MonkeyPatch, opening: str, prompt: str):
    template = f"{{{{ messages[1].content + {opening!r} }}}}"
    monkeypatch.setattr(MODEL.tokenizer, "chat_template", template)
    problem = Problem(id="p", prompt=(TextPart(text="Ann has <think>4."),), answer="4")
    assert MODEL.decode(CODEC.prompts(problem)[Speaker.LONG]) == f"Ann has <think>4.{prompt}"


def random_script(rng: random.Random) -> Callable[[Checkpoint, Request, int], Completion]:
    """A script with a few random turns."""

    def script(model: Checkpoint, request: Request, number: int) -> Completion:
        text = model.decode(request.prompt_ids)
        endings = ["</think>"] if text.endswith("<think>") else ["</rethink>", "</answer>"]
        return completion_of(f"\n{rng.choice(['It is 4.', 'Wait, 5.'])}{rng.choice(endings)}")

    return script


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_many_dialogues_run_concurrently(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int):
    def run(root: Path) -> tuple[list[DialogueSampler], int]:
        rng = random.Random(seed)
        engines = [ScriptedEngine(random_script(rng)) for _ in Speaker]
        plans = [
            DialogueSampler(CODEC, {s: TokenIds((*ids, number)) for s, ids in PROMPTS.items()}, count)
            for number in range(5)
        ]
        jobs = [plan.job(Sampling()) for plan in plans]
        pair = RolloutExecutor(
            RolloutStore(f"sqlite:///{root / 'db'}"), [EngineScheduler(e, MODEL) for e in engines], Purpose.VALUE, 0
        )
        assert len(list(pair.run(jobs))) == 5
        return plans, sum(engine.completions for engine in engines)

    root = tmp_path_factory.mktemp("root")
    plans, sampled = run(root)
    states = [state for plan in plans for state in plan.dialogues]
    assert all(state.dialogue.is_over for state in states)
    assert sampled == sum(len(state.turns) for state in states)
    again, sampled_again = run(root)
    assert sampled_again == 0
    assert [[state.token_ids for state in plan.dialogues] for plan in again] == [
        [state.token_ids for state in plan.dialogues] for plan in plans
    ]


class SmallCache(ScriptedEngine):
    """An engine whose KV cache holds one dialogue."""

    cache_tokens = 1  # type: ignore[assignment]


def test_resumed_dialogues_do_not_deadlock_two_schedulers(tmp_path: Path):
    """The opening turn of the first dialogue is stored, so it starts at Short's scheduler and the second at Long's;
    then each needs the other scheduler."""

    def reply(model: Checkpoint, request: Request, number: int) -> Completion:
        return completion_of(
            "\n5?</rethink>" if model.decode(request.prompt_ids).count("<answer>") < 2 else "\n4.</answer>"
        )

    def think(model: Checkpoint, request: Request, number: int) -> Completion:
        return completion_of("\nIt is 4.</think>")

    def die(model: Checkpoint, request: Request, number: int) -> Completion:
        raise ConnectionError

    def run(count: int, short: Callable[[Checkpoint, Request, int], Completion]) -> list[str]:
        plans = [
            DialogueSampler(CODEC, {s: TokenIds((*ids, number)) for s, ids in PROMPTS.items()}, 1)
            for number in range(count)
        ]
        schedulers = [EngineScheduler(SmallCache(script), MODEL) for script in (think, short)]
        store = RolloutStore(f"sqlite:///{tmp_path / 'db'}")
        RolloutExecutor(store, schedulers, Purpose.VALUE, 0).run_to_completion(plan.job(Sampling()) for plan in plans)
        return [str(plan.dialogues[0].dialogue) for plan in plans]

    with pytest.raises(ConnectionError):
        run(1, die)
    text_of_turn = "<think>\nIt is 4.</think><answer>\n5?</rethink><think>\nIt is 4.</think><answer>\n4.</answer>"
    assert run(2, reply) == [text_of_turn, text_of_turn]
