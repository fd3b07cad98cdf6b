"""Dialogues of two models, in the tokens of the bundled tokenizer."""

import random
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.long_short import MAX_TAG_TOKENS as MOST_FOR_TAGS
from conf.long_short import Protocol
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.dialogue_sampler import DialogueSampler, DialogueState, TurnCodec
from models.inference.engine import Completion, Request
from models.inference.rollout_engine import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler
from models.inference.scripted_engine import ScriptedEngine
from reasoning.dialogue import CLOSINGS, OPENING, TAGS, Dialogue, Fault, Speaker
from reasoning.records import Problem, TextPart

END = "<|endoftext|>"
PROTOCOL = Protocol(long_role="<|long|>", short_role="<|short|>", max_turn_tokens=192)
MODEL = Checkpoint.open(TINY_MODEL)
TONGUE = TurnCodec(MODEL, PROTOCOL)
PROMPTS = {Speaker.LONG: MODEL.encode("<|long|>Ann has 4."), Speaker.SHORT: MODEL.encode("<|short|>Ann has 4.")}
SAID = st.lists(
    st.sampled_from([*TAGS, "Now it is 4.", "\\boxed{4}", "}", "{", "\n", " 12", "< 5", "Wait, ", "}."]), max_size=7
).map("".join)


def drawn(said: str, has_ended: bool = True) -> Completion:
    return Completion(MODEL.encode(said + END * has_ended), has_ended)


def own_text(line_ids: tuple[int, ...], own: tuple[bool, ...]) -> str:
    return MODEL.decode(tuple(token for token, mine in zip(line_ids, own, strict=True) if mine))


@given(st.lists(st.integers(0, len(MODEL.tokenizer) - 1), max_size=30))
def test_what_is_heard_as_it_comes_is_what_is_heard_in_the_end(token_ids: list[int]):
    listen, heard = TONGUE.stream_decoder(), ""
    whole = MODEL.decode(tuple(takewhile(lambda token: token not in MODEL.special_ids, token_ids)))
    for token in token_ids:
        heard += listen((token,))
        assert whole.startswith(heard)
    assert heard == whole.rstrip("\ufffd")


def test_any_of_the_models_end_tokens_ends_a_turn(tmp_path: Path):
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [0, 463]}')
    model = Checkpoint.open(tmp_path / "model")
    said = model.encode("\nIt is 4.</think>")
    for end in (0, 463):
        line = TurnCodec(model, PROTOCOL).decode_turn(Dialogue(PROTOCOL.max_rounds), Completion((*said, end), True))
        assert line.token_ids == (*model.encode("<think>"), *said, end)
        assert line.own == (False, *[True] * len(said), True)


def test_the_room_of_a_dialogue_holds_the_longest_of_any_tokenizer():
    """Long runs into its limit, Short asks again at its own; what tags and lead add is bounded by their bytes."""
    state, cut = (
        DialogueState(Dialogue(PROTOCOL.max_rounds)),
        MODEL.encode("12 " * PROTOCOL.max_turn_tokens)[: PROTOCOL.max_turn_tokens],
    )
    ask = (*cut[:-1], *MODEL.encode("</rethink>"))
    while not state.dialogue.is_over:
        said = ask if state.dialogue.next_speaker is Speaker.SHORT and not state.dialogue.must_answer else cut
        assert len(said) == PROTOCOL.max_turn_tokens
        state = state.with_turn(TONGUE.decode_turn(state.dialogue, Completion(said, False)))
    assert len(state.lines) == PROTOCOL.max_turns
    assert PROTOCOL.max_turns * PROTOCOL.max_turn_tokens < len(state.token_ids) <= PROTOCOL.max_dialogue_tokens
    assert max(len(OPENING[one] + closing) for one in Speaker for closing in CLOSINGS[one]) < MOST_FOR_TAGS


def test_bytes_that_are_no_text_end_what_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    """Tokenizers that fall back to bytes raise a bare Exception there; the bundled one does not."""

    class Stream:
        def __init__(self, **_: bool):
            pass

        def step(self, _: object, token: int) -> str | None:
            if token == 7:
                raise Exception("Invalid prefix encountered while decoding stream")
            return MODEL.decode((token,))

    monkeypatch.setattr("models.inference.dialogue_sampler.DecodeStream", Stream)
    listen = TONGUE.stream_decoder()
    assert (listen((8, 9)), listen((10, 7, 8)), listen((8,))) == (MODEL.decode((8, 9)), MODEL.decode((10,)), "")


@pytest.mark.parametrize("after", ["", "</think>", "<|short|>Ann has 4.<answer>\\boxed{9}</answer>"])
def test_a_special_token_ends_what_is_heard(after: str):
    """Decoded, it is not there; the partner would see what it opens."""
    pad = MODEL.tokenizer.pad_token_id
    assert pad in MODEL.special_ids
    before = MODEL.encode("\nNow it is 4.")
    line = TONGUE.decode_turn(Dialogue(4), Completion((*before, pad, *MODEL.encode(after + END)), True))
    assert (line.turn.text, line.turn.fault) == ("\nNow it is 4.", Fault.UNCLOSED)
    assert MODEL.decode(line.token_ids) == "<think>\nNow it is 4.</think>"
    assert not {pad} & set(line.token_ids)
    assert line.own == (False,) + (True,) * len(before) + (False,) * (len(line.own) - 1 - len(before))
    assert line.drawn == len(before) + 1 + len(MODEL.encode(after + END))


def test_a_good_turn_stands_as_it_was_drawn():
    completion = drawn("\nNow it is 4.\n</think>")
    line = TONGUE.decode_turn(Dialogue(4), completion)
    assert line.token_ids == MODEL.encode("<think>") + completion.token_ids
    assert line.own == (False,) + (True,) * len(completion.token_ids)
    assert line.drawn == len(completion.token_ids)


@pytest.mark.parametrize(
    ("said", "has_ended", "transcript", "own"),
    [
        ("\nNow it is 4.", False, "<think>\nNow it is 4.</think>", "\nNow it is 4."),
        ("\nNow it is 4.", True, "<think>\nNow it is 4.</think>", "\nNow it is 4."),
        ("It is 4.</think><answer>9</answer>", True, "<think>It is 4.</think>", "It is 4."),
        ("It is<answer> 4.</think>", True, "<think>It is</think>", "It is"),
    ],
)
def test_what_is_mended_is_nobodys_own(said: str, has_ended: bool, transcript: str, own: str):
    line = TONGUE.decode_turn(Dialogue(4), drawn(said, has_ended))
    assert MODEL.decode(line.token_ids) == transcript
    assert line.token_ids[-1] == MODEL.end_id
    assert not line.own[-1]
    assert own_text(line.token_ids, line.own) == own
    assert line.turn.fault in (Fault.UNCLOSED, Fault.TRAILING, Fault.FOREIGN)


def test_what_stands_between_a_turns_tag_and_its_end_is_not_shown_to_the_partner():
    line = TONGUE.decode_turn(Dialogue(4), drawn("It is 4.</think>\n \n"))
    assert line.turn.fault is None
    assert MODEL.decode(line.token_ids) == str(line.turn) == "<think>It is 4.</think>"
    assert line.own[-2:] == (True, False)  # the tag, and the end that comes after what was left out


def test_a_turn_that_ends_with_its_tag_needs_no_end_token():
    line = TONGUE.decode_turn(Dialogue(4), drawn("It is 4.</think>", has_ended=False))
    assert (line.turn.fault, line.token_ids[-1], line.own[-2:]) == (None, MODEL.end_id, (True, False))


def test_a_character_that_was_cut_off_is_mended():
    whole = MODEL.encode("It is 4é")
    line = TONGUE.decode_turn(Dialogue(4), Completion(whole[:-1], finished=False))
    assert line.turn.fault is Fault.UNCLOSED
    assert MODEL.decode(line.token_ids) == f"<think>{line.turn.text}</think>"


@given(st.lists(st.tuples(SAID, st.booleans()), min_size=9, max_size=9), st.integers(1, 4))
def test_tokens_say_what_the_dialogue_says(said: list[tuple[str, bool]], max_rounds: int):
    codec = TurnCodec(MODEL, PROTOCOL.model_copy(update={"max_rounds": max_rounds}))
    plan, left = DialogueSampler(codec, PROMPTS, 1), iter(said)
    while plan.is_open:
        (ask,) = plan.next_ranges()
        speaker = plan.dialogues[0].dialogue.next_speaker
        transcript, shown = plan.dialogues[0].token_ids, plan.prompt(ask.prefix)
        assert shown[: len(PROMPTS[speaker]) + len(transcript)] == PROMPTS[speaker] + transcript
        completion = drawn(*next(left))
        plan.add(ask, [completion])
        line = plan.dialogues[0].lines[-1]
        assert line.drawn == len(completion.token_ids) >= sum(line.own)
        assert own_text(line.token_ids, line.own) in MODEL.decode(completion.token_ids)
    state = plan.dialogues[0]
    assert MODEL.decode(state.token_ids) == str(state.dialogue)
    owners = [state.own_tokens(speaker) for speaker in Speaker]
    assert not any(long and short for long, short in zip(*owners, strict=True))


def test_a_prompt_ends_where_the_first_turn_opens():
    problem = Problem(id="p", prompt=(TextPart(text="Ann has 4."),), answer="4")
    text = MODEL.decode(TONGUE.prompts(problem)[Speaker.LONG])
    assert text == "<|system|><|long|><|user|>Ann has 4.<|assistant|>"


@pytest.mark.parametrize(
    ("opening", "shown"), [("<|assistant|>\n", "<|assistant|>\n"), ("<|assistant|>\n<think>\n", "<|assistant|>\n")]
)
def test_of_a_template_only_the_thinkings_own_opening_is_left_out(
    monkeypatch: pytest.MonkeyPatch, opening: str, shown: str
):
    template = f"{{{{ messages[1].content + {opening!r} }}}}"
    monkeypatch.setattr(MODEL.tokenizer, "chat_template", template)
    problem = Problem(id="p", prompt=(TextPart(text="Ann has <think>4."),), answer="4")
    assert MODEL.decode(TONGUE.prompts(problem)[Speaker.LONG]) == f"Ann has <think>4.{shown}"


def speak(luck: random.Random) -> Callable[[Checkpoint, Request, int], Completion]:
    """A model that says one of a few things."""

    def script(model: Checkpoint, request: Request, number: int) -> Completion:
        text = model.decode(request.prompt_ids)
        endings = ["</think>"] if text.endswith("<think>") else ["</rethink>", "</answer>"]
        return drawn(f"\n{luck.choice(['It is 4.', 'Wait, 5.'])}{luck.choice(endings)}")

    return script


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_many_dialogues_advance_together(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int):
    def play(root: Path) -> tuple[list[DialogueSampler], int]:
        luck = random.Random(seed)
        engines = [ScriptedEngine(speak(luck)) for _ in Speaker]
        plans = [
            DialogueSampler(TONGUE, {s: (*ids, number) for s, ids in PROMPTS.items()}, count) for number in range(5)
        ]
        jobs = [plan.job(Sampling()) for plan in plans]
        pair = RolloutExecutor(
            RolloutStore(f"sqlite:///{root / 'db'}"), [EngineScheduler(e, MODEL) for e in engines], Purpose.VALUE, 0
        )
        assert len(list(pair.run(jobs))) == 5
        return plans, sum(engine.completions for engine in engines)

    root = tmp_path_factory.mktemp("root")
    plans, drawn_ones = play(root)
    states = [state for plan in plans for state in plan.dialogues]
    assert all(state.dialogue.is_over for state in states)
    assert drawn_ones == sum(len(state.lines) for state in states)
    again, drawn_again = play(root)
    assert drawn_again == 0
    assert [[state.token_ids for state in plan.dialogues] for plan in again] == [
        [state.token_ids for state in plan.dialogues] for plan in plans
    ]


class SmallCache(ScriptedEngine):
    """It holds one dialogue."""

    cache_tokens = 1  # type: ignore[assignment]


def test_dialogues_that_were_cut_off_do_not_wait_for_one_another(tmp_path: Path):
    """The first one's opening turn is stored: it begins at Short's desk, and the second at Long's; then each wants to
    go where the other is."""

    def reply(model: Checkpoint, request: Request, number: int) -> Completion:
        return drawn("\n5?</rethink>" if model.decode(request.prompt_ids).count("<answer>") < 2 else "\n4.</answer>")

    def think(model: Checkpoint, request: Request, number: int) -> Completion:
        return drawn("\nIt is 4.</think>")

    def die(model: Checkpoint, request: Request, number: int) -> Completion:
        raise ConnectionError

    def play(count: int, short: Callable[[Checkpoint, Request, int], Completion]) -> list[str]:
        plans = [
            DialogueSampler(TONGUE, {s: (*ids, number) for s, ids in PROMPTS.items()}, 1) for number in range(count)
        ]
        schedulers = [EngineScheduler(SmallCache(script), MODEL) for script in (think, short)]
        store = RolloutStore(f"sqlite:///{tmp_path / 'db'}")
        RolloutExecutor(store, schedulers, Purpose.VALUE, 0).run_jobs(plan.job(Sampling()) for plan in plans)
        return [str(plan.dialogues[0].dialogue) for plan in plans]

    with pytest.raises(ConnectionError):
        play(1, die)
    said = "<think>\nIt is 4.</think><answer>\n5?</rethink><think>\nIt is 4.</think><answer>\n4.</answer>"
    assert play(2, reply) == [said, said]
