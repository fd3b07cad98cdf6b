"""Endpoints that speak OpenAI's protocol in part, refuse for many reasons, and reply in many forms."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from conf.llm import Llm
from models.llm.client import CapReached, LlmClient, LlmFailed, TooManyInvalidReplies
from models.llm.errors import Kind, error_inside, error_of, one_line
from models.llm.reply_parsing import json_body, json_objects, parse_chat_reply
from models.llm.reply_store import ReplyStore
from reasoning.llm_queries import InvalidReply, LlmQuery, LlmReply, Solution
from tests.models.chat import Answer, Chat, Script

KEY = "BREVITY_LLM_KEY"
GOOD = '{"level": 3, "note": "easy"}'


class Grade(LlmReply):
    level: int = Field(ge=1, le=10)
    note: str = Field(max_length=200)


EASY = Grade(level=3, note="easy")


class Time:
    """Passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture
def replies(tmp_path: Path) -> Iterator[ReplyStore]:
    store = ReplyStore(f"sqlite:///{tmp_path / 'replies'}")
    yield store
    store.close()


class Client:
    """Asks a scripted endpoint; `time` is its own."""

    def __init__(self, server: Chat, replies: ReplyStore, **settings: Any):
        self.time, self.server = Time(), server
        self.llm = LlmClient(
            Llm(url=server.url, model="m", **settings), replies, sleep=self.time.sleep, clock=self.time.clock
        )

    def ask(
        self, count: int = 1, max_invalid_fraction: float = 1.0, max_tokens: int = 50
    ) -> list[Grade | InvalidReply]:
        asks = [
            LlmQuery("Grade this.", f"problem {n}", Grade, max_tokens, limit="rating.max_tokens") for n in range(count)
        ]
        return self.llm.ask(asks, lambda done, tokens: None, max_invalid_fraction)

    def solve(self) -> Solution | InvalidReply:
        return self.llm.ask([LlmQuery("Think.", "1+1?", Solution, 9, 0.6, 0.95)], lambda done, tokens: None)[0]


@pytest.fixture
def client(chat: Callable[..., Chat], replies: ReplyStore) -> Callable[..., Client]:
    def start(script: Script | Answer, **settings: Any) -> Client:
        server = chat(script if callable(script) else lambda body, number: script)
        return Client(server, replies, **settings)

    return start


def refusal(message: str, status: int = 400, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return Answer(status=status, body=body, headers=headers or {})


def reply(message: dict[str, Any] | None = None, finish: str | None = "stop", **fields: Any) -> Answer:
    """A chat's reply without usage, unless `fields` hold some."""
    choices = [{"message": {"role": "assistant", **(message or {"content": GOOD})}, "finish_reason": finish}]
    return Answer(body=json.dumps({"choices": choices, **fields}).encode())


def form(body: dict[str, Any]) -> str:
    return body.get("response_format", {}).get("type", "text")


def prompt(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


# What an endpoint does not take is found once, and all questions are answered.

NO_SCHEMA = [
    refusal("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
    refusal("This response_format type is unavailable now", code="invalid_request_error"),
    refusal("The parameter `response_format.type` is not valid: supported values are: `json_object` and `text`."),
    refusal("guided decoding is switched off"),
    refusal("Structured outputs are not supported", 422),
    refusal("No endpoint found that supports response_format", 404),
    refusal("failed to parse grammar", 500),
    Answer(status=422, body=b'{"detail": [{"loc": ["body", "response_format", "type"], "msg": "unexpected value"}]}'),
    refusal("Bad Request"),
    Answer(status=400, body=b""),
    Answer(status=400, body=b"<html>400</html>"),
]


@pytest.mark.parametrize("answer", NO_SCHEMA)
@pytest.mark.parametrize("taken", ["json_object", "text"])
def test_a_schema_that_is_refused_is_told_in_the_prompt(client: Callable[..., Client], answer: Answer, taken: str):
    steps = ["json_schema", "json_object", "text"]
    one = client(lambda body, number: Answer(GOOD) if steps.index(form(body)) >= steps.index(taken) else answer)
    assert one.ask(20) == [EASY] * 20
    forms = [form(body) for body in one.server.asked]
    assert forms == [*steps[: steps.index(taken)], *[taken] * 20]
    told = one.server.asked[-1]["messages"]
    assert [message["role"] for message in told] == ["system", "user"]
    assert '"maxLength": 200' in told[0]["content"]
    assert "JSON" in told[0]["content"]  # without the word, OpenAI refuses json_object
    assert told[1]["content"].startswith("problem")
    assert one.llm.notes[0].startswith(f"{one.server.url} does not take ")
    assert one.time.slept == []
    assert one.ask(25) == [EASY] * 25
    assert [form(body) for body in one.server.asked[len(forms) :]] == [taken] * 5  # for the client's life
    assert one.llm.notes == []


def test_another_wording_finds_the_same_kept_replies(client: Callable[..., Client], replies: ReplyStore):
    picky = client(lambda body, number: refusal("no json_schema") if form(body) == "json_schema" else Answer(GOOD))
    assert picky.ask(3) == [EASY] * 3
    again = Client(picky.server, replies)
    assert again.ask(3) == [EASY] * 3
    assert len(picky.server.asked) == 4


def test_refused_requests_cost_nothing(client: Callable[..., Client]):
    one = client(
        lambda body, number: refusal("response_format") if form(body) != "text" else Answer(GOOD),
        price_in=1.0,
        price_out=1.0,
        cap=0.01,
    )
    assert one.ask(3) == [EASY] * 3
    assert one.llm.usage.money == pytest.approx(3 * 110e-6)
    assert (one.llm.usage.prompt_tokens, one.llm.usage.generated_tokens) == (300, 30)


NO_MAX_TOKENS = [
    refusal(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        type="invalid_request_error",
        param="max_tokens",
        code="unsupported_parameter",
    ),
    refusal("max_tokens: unknown field", 422),
    refusal("Bad Request"),
    Answer(status=422, body=b'{"detail": [{"loc": ["body", "max_tokens"], "input": {"response_format": 1}}]}'),
]


@pytest.mark.parametrize("answer", NO_MAX_TOKENS)
def test_a_limit_of_another_name(client: Callable[..., Client], answer: Answer):
    one = client(lambda body, number: answer if "max_tokens" in body else Answer(GOOD))
    assert one.ask(20) == [EASY] * 20
    last = one.server.asked[-1]
    assert (last["max_completion_tokens"], form(last)) == (50, "json_schema")
    assert sum("max_tokens" in body for body in one.server.asked) == len(one.server.asked) - 20


NO_TEMPERATURE = refusal(
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
    param="temperature",
    code="unsupported_value",
)


def test_a_reasoning_model_takes_neither_temperature_nor_max_tokens_nor_top_p(client: Callable[..., Client]):
    def script(body: dict[str, Any], number: int) -> Answer:
        if "max_tokens" in body:
            return NO_MAX_TOKENS[0]
        if "temperature" in body:
            return NO_TEMPERATURE
        return refusal("Unsupported parameter: 'top_p'") if "top_p" in body else reply({"content": "a</think>b"})

    one = client(script)
    assert one.solve() == Solution(text="a</think>b", truncated=False)
    assert len(one.server.asked) == 4
    assert one.server.asked[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_a_template_without_a_system_role(client: Callable[..., Client]):
    one = client(
        lambda body, number: refusal("System role not supported") if len(body["messages"]) > 1 else Answer(GOOD)
    )
    assert one.ask(5) == [EASY] * 5
    assert len(one.server.asked) == 6
    assert one.server.asked[-1]["messages"][0]["content"].startswith("Grade this.\n\nproblem")


def test_what_no_wording_helps_is_refused_with_its_name(client: Callable[..., Client]):
    one = client(refusal("Unknown parameter: 'model_kwargs'"))
    (found,) = one.ask()
    assert found == InvalidReply("refused", "400: Unknown parameter: 'model_kwargs'")
    with pytest.raises(TooManyInvalidReplies, match="refused; the first: 400: Unknown parameter: 'model_kwargs'"):
        one.ask(20, max_invalid_fraction=0.1)


def test_an_endpoint_that_has_answered_is_not_doubted_for_one_question(client: Callable[..., Client]):
    one = client(lambda body, number: refusal("Bad Request") if "problem 3" in prompt(body) else Answer(GOOD))
    found = one.ask(5)
    assert [getattr(answer, "reason", "fine") for answer in found] == ["fine", "fine", "fine", "refused", "fine"]
    assert len(one.server.asked) == 5


def test_a_limit_beyond_the_context_is_no_refusal_of_max_tokens(client: Callable[..., Client]):
    for words in (
        "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum is 2048",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "Range of max_tokens should be [1, 8192]",
    ):
        one = client(refusal(words, param="max_tokens"))
        with pytest.raises(TooManyInvalidReplies, match=r"too-long; .*Lower rating\.max_tokens"):
            one.ask(3, max_invalid_fraction=0.1)
        assert all("max_tokens" in body for body in one.server.asked)


# Replies in all forms.

THINKING = 'Is it 3? {"level": 5, "note": "draft"}'
FORMS = [
    f"```json\n{GOOD}\n```",
    f"```\n{GOOD}\n```",
    f"Here you are:\n```json\n{GOOD}\n```\nAnything else?",
    f"```JSON {GOOD}```",
    f"<think>{THINKING}</think>{GOOD}",
    f"<think>\n{THINKING}\n</think>\n\n```json\n{GOOD}\n```",
    f"{THINKING}</think>{GOOD}",
    f"<thinking>{THINKING}</thinking>{GOOD}",
    f"[THINK]{THINKING}[/THINK]{GOOD}",
    f"<|channel|>analysis<|message|>{THINKING}<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
    f"{GOOD}\n\nThis is because \\frac{{1}}{{2}} is easy.",
    f"With $\\frac{{1}}{{2}}$ and {{1, 2}}: {GOOD}",
    f"\ufeff{GOOD}",
    f"  \n{GOOD}\n ",
    f"{GOOD}\n{GOOD}",
    f"**Level**: {GOOD}.",
]


@pytest.mark.parametrize("content", FORMS)
def test_json_is_found_at_the_first_asking(client: Callable[..., Client], content: str):
    one = client(Answer(content))
    assert one.ask() == [EASY]
    assert len(one.server.asked) == 1


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (f'{GOOD} or {{"level": 4, "note": ""}}', "2 different replies"),
        (f"<think>{GOOD}", "does not end"),
        ('```json\n{"level": NaN, "note": ""}\n```', "level"),
        ('Level: {"level": 30, "note": ""}', "level: "),
        ("[" * 100_000, "Invalid JSON"),
        ('{"a":' * 100_000, "Invalid JSON"),
        ("{" * 100_000, "Invalid JSON"),
        ('{"a": "' * 100_000, "Invalid JSON"),
        ('{"a":[' * 900 + "0," * 300_000, "Invalid JSON"),
        ('{"level": ' + "9" * 5000 + ', "note": ""}', ""),
        ('{"level": "3; DROP TABLE", "note": ""}', "level"),
    ],
)
def test_hostile_or_ambiguous_json_is_malformed(client: Callable[..., Client], content: str, detail: str):
    (found,) = client(Answer(content)).ask()
    assert isinstance(found, InvalidReply)
    assert found.reason == "malformed"
    assert detail in found.detail
    assert len(found.detail) <= 400


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{1}{2}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"3 \times 4 \neq \sqrt{2}",
        r"\(x\) and \theta",
        r"\underline{a}",
        "a\nb",
        "a\n\ntotal\tb",
        "\nnot \\nu",
        r"\\frac",
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_formulas_are_read_whether_or_not_their_backslashes_are_escaped(
    client: Callable[..., Client], text: str, escaped: bool
):
    said = json.dumps(text) if escaped else f'"{text}"'
    if escaped or ("\\\\" not in text and text.isprintable()):
        assert client(Answer(f'{{"level": 3, "note": {said}}}')).ask() == [Grade(level=3, note=text)]


@given(st.lists(st.one_of(st.text(alphabet=st.characters(exclude_characters="{}"), max_size=20), st.booleans())))
def test_all_objects_of_a_text_are_found_in_order(parts: list[str | bool]):
    objects = [json.dumps({"number": index, "text": '}{"'}) for index in range(sum(map(bool, parts)))]
    rest = iter(objects[: sum(part is True for part in parts)])
    text = "".join(next(rest, "") if part is True else str(part or "") for part in parts)
    assert list(json_objects(text)) == objects[: sum(part is True for part in parts)]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}],
        [GOOD[:9], GOOD[9:]],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "{}"}]}, {"type": "text", "text": GOOD}],
        [{"type": "output_text", "text": GOOD}, {"type": "image", "text": "x"}, {"type": "text", "text": 5}, {}, None],
    ],
)
def test_a_list_of_chunks_is_joined(client: Callable[..., Client], content: list[Any]):
    assert client(reply({"content": content})).ask() == [EASY]


USAGE = {"prompt_tokens": 7, "completion_tokens": 5}


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": None, "reasoning": "1+1=2."},
        {"reasoning_content": "", "reasoning": "1+1=2."},
        {"reasoning_content": "1+1=2.", "reasoning": None},
        {"reasoning_content": "1+1=2."},
        {"reasoning": "1+1=2."},
        {"reasoning_content": "1+1=2.", "reasoning": " "},
        {"reasoning_content": 5, "reasoning": "1+1=2."},
    ],
)
def test_the_filled_thinking_counts(client: Callable[..., Client], fields: dict[str, Any]):
    solved = client(reply({"content": "2", **fields}, usage=USAGE)).solve()
    assert solved == Solution(text="1+1=2.</think>2", truncated=False)
    assert client(reply({"content": GOOD, **fields})).ask() == [EASY]  # no part of a reply with a form


def test_thinking_in_chunks_counts(client: Callable[..., Client]):
    chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": "1+1=2."}]}, {"type": "text", "text": "2"}]
    assert client(reply({"content": chunks})).solve() == Solution(text="1+1=2.</think>2", truncated=False)


def test_thinking_that_leaves_no_room_names_the_roles_limit(client: Callable[..., Client]):
    one = client(reply({"content": None, "reasoning": "Let me see"}, finish="length", usage=USAGE))
    (found,) = one.ask()
    assert found == InvalidReply("cut-off", "it is longer than 50 tokens, thinking included; raise rating.max_tokens")
    assert len(one.server.asked) == 1  # a second asking would end the same way
    with pytest.raises(TooManyInvalidReplies, match=r"cut-off; .*Raise rating\.max_tokens"):
        one.ask(20, max_invalid_fraction=0.1)


@pytest.mark.parametrize(
    "answer",
    [
        reply({"content": GOOD[:9]}, finish="MAX_TOKENS"),
        reply({"content": GOOD[:9]}, finish="model_length"),
        refusal(
            "Could not finish the message because max_tokens or model output limit was reached. Please try again "
            "with higher max_tokens."
        ),
    ],
)
def test_the_end_of_the_allowed_tokens_has_many_names(client: Callable[..., Client], answer: Answer):
    with pytest.raises(TooManyInvalidReplies, match=r"cut-off; .*Raise rating\.max_tokens"):
        client(answer).ask(20, max_invalid_fraction=0.1)


def test_a_higher_limit_asks_only_for_what_was_cut_off(client: Callable[..., Client]):
    def script(body: dict[str, Any], number: int) -> Answer:
        return Answer("", finish="length") if "problem 1" in prompt(body) and body["max_tokens"] == 50 else Answer(GOOD)

    one = client(script)
    assert [getattr(found, "reason", "fine") for found in one.ask(3)] == ["fine", "cut-off", "fine"]
    assert one.ask(3, max_tokens=500) == [EASY] * 3
    assert len(one.server.asked) == 4
    assert one.ask(3, max_tokens=500) == [EASY] * 3
    assert len(one.server.asked) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply({"content": None}, finish="content_filter", usage=USAGE), "filtered"),
        (reply({"content": GOOD}, finish="content_filter", usage=USAGE), "filtered"),
        (reply({"content": ""}, finish="SAFETY", usage=USAGE), "filtered"),
        (reply({"content": None, "refusal": "I cannot help with that."}, usage=USAGE), "declined"),
    ],
)
def test_what_is_held_back_is_counted_paid_and_not_asked_again(
    client: Callable[..., Client], answer: Answer, reason: str
):
    one = client(answer, price_in=1.0, price_out=1.0)
    for _ in range(2):
        (found,) = one.ask()
        assert isinstance(found, InvalidReply)
        assert found.reason == reason
    assert len(one.server.asked) == 1


def test_a_flagged_question_does_not_end_the_run(client: Callable[..., Client]):
    flagged = refusal("Your chosen model requires moderation and your input was flagged", 403)
    one = client(lambda body, number: flagged if "problem 1" in prompt(body) else Answer(GOOD))
    assert [getattr(found, "reason", "fine") for found in one.ask(3)] == ["fine", "filtered", "fine"]


# Tokens that are not told.

UNTOLD = [
    None,
    {},
    {"prompt_tokens": None, "completion_tokens": None},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": -1, "completion_tokens": 1e400},
    5,
    "many",
    {"prompt_tokens": 10**30, "completion_tokens": "12"},
]


@pytest.mark.parametrize("usage", UNTOLD)
def test_untold_tokens_are_counted_as_unknown(client: Callable[..., Client], replies: ReplyStore, usage: Any):
    one = client(reply(usage=usage) if usage is not None else reply())
    for asking, reused in ((one, 0), (Client(one.server, replies), 2)):
        assert asking.ask(2) == [EASY] * 2
        told = asking.llm.usage
        assert (told.prompt_tokens, told.generated_tokens, told.money) == (0, 0, 0.0)
        assert (told.unmetered_replies, told.reused_completions) == (2, reused)
        assert asking.llm.notes == [f"{one.server.url} told no usage for 2 replies: their tokens are not counted"]


def test_untold_tokens_cost_what_they_may_have_cost(client: Callable[..., Client]):
    one = client(reply(), price_out=1e6, cap=120.0)  # 50 tokens at most, 1 each
    with pytest.raises(CapReached, match="2 of 3 questions are answered"):
        one.ask(3)
    assert one.llm.usage.money == pytest.approx(100.0)
    assert "priced as the most" in one.llm.notes[0]
    with pytest.raises(CapReached, match="2 of 3 questions are answered"):
        Client(one.server, one.llm._replies, price_out=1e6, cap=120.0).ask(3)
    assert len(one.server.asked) == 2
    half = client(reply(usage={"prompt_tokens": 7, "completion_tokens": None}), price_in=1e6, price_out=1e6)
    half.ask()
    assert half.llm.usage.money == pytest.approx(57.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_cap_holds_whatever_is_told(client: Callable[..., Client], seed: int):
    luck = random.Random(seed)
    true_cost = 0.0

    def script(body: dict[str, Any], number: int) -> Answer:
        nonlocal true_cost
        if luck.random() < 0.3:
            return luck.choice([refusal("response_format"), refusal("slow down", 429), refusal("broken", 500)])
        tokens = luck.randint(1, 50)
        true_cost += tokens
        return reply(usage=luck.choice([None, {"prompt_tokens": 9, "completion_tokens": tokens}]))

    cap = luck.uniform(60, 900)
    one = client(script, price_out=1e6, cap=cap, concurrency=luck.randint(1, 6))
    with pytest.raises(CapReached):
        one.ask(100)
    assert true_cost <= one.llm.usage.money + 1e-6 <= cap + 2e-6


# Errors: what they are, and what becomes of the run.


@pytest.mark.parametrize("code", [429, "429", "rate_limit_exceeded", 500, "server_error", 502, None, "overloaded"])
@pytest.mark.parametrize("inside", ["error", "choice", "object"])
def test_an_error_inside_a_reply_is_tried_again(client: Callable[..., Client], code: Any, inside: str):
    error = {"message": "Provider returned error", "code": code}
    body = {
        "error": {"error": error},
        "choice": {"choices": [{"error": error, "message": {"content": ""}}]},
        "object": {"object": "error", **error},
    }[inside]
    one = client(lambda _, number: Answer(GOOD) if number else Answer(body=json.dumps(body).encode()))
    assert one.ask() == [EASY]
    assert len(one.server.asked) == 2


def test_an_error_inside_a_reply_keeps_its_meaning(client: Callable[..., Client]):
    for error, words in (
        ({"code": 401, "message": "No auth"}, f"set {KEY}"),
        ({"code": 402, "message": "x"}, "has no money"),
        ({"message": "Insufficient credits"}, "has no money"),
        ({"code": 404, "message": "x"}, "knows no model"),
    ):
        one = client(Answer(body=json.dumps({"error": error}).encode()))
        with pytest.raises(LlmFailed, match=words):
            one.ask(20)
        assert len(one.server.asked) == 1
    assert client(reply(error=None)).ask() == [EASY]
    assert client(reply(error={})).ask() == [EASY]


NO_MONEY = [
    refusal("Payment required", 402),
    Answer(status=402, body=b""),
    refusal("", 402, code=402),
    refusal(
        "You exceeded your current quota, please check your plan and billing details.",
        429,
        type="insufficient_quota",
        code="insufficient_quota",
    ),
    refusal("You exceeded your current quota, please check your plan.", 429),
    refusal("Billing hard limit has been reached", 400, code="billing_hard_limit_reached"),
    refusal("Your account is not active", 429, code="billing_not_active"),
    refusal("Your credit balance is too low to access the Anthropic API.", type="invalid_request_error"),
    refusal("Insufficient Balance", 403),
    refusal("余额不足或无可用资源包,请充值。", 429, code="1113"),
    refusal("Budget has been exceeded! Current cost: 10.1, Max budget: 10.0", 400, type="budget_exceeded"),
    refusal("Access denied, please make sure your account is in good standing.", 400, code="Arrearage"),
    refusal("Your newly created team doesn't have any credits yet.", 403),
    refusal("Sorry, your account balance is insufficient", 403, headers={"retry-after": "5"}),
]


@pytest.mark.parametrize("answer", NO_MONEY)
def test_an_empty_account_ends_the_run_with_one_request(client: Callable[..., Client], answer: Answer):
    one = client(answer)
    with pytest.raises(LlmFailed, match=rf"the account at {one.server.url} has no money .*top it up") as caught:
        one.ask(50)
    assert len(one.server.asked) == 1
    assert "\n" not in str(caught.value)
    assert one.time.slept == []


@pytest.mark.parametrize(
    "answer",
    [
        refusal("You exceeded your current quota", 429, code="RESOURCE_EXHAUSTED"),
        refusal("Insufficient credits", 402, {"Retry-After": "2"}, limit_source="openrouter_in_flight_budget"),
    ],
)
def test_a_quota_that_fills_again_is_waited_for(client: Callable[..., Client], answer: Answer):
    assert client(lambda _, number: Answer(GOOD) if number else answer).ask() == [EASY]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal("Invalid API key", 401), f"refuses the key .*set {KEY}"),
        (refusal("Forbidden", 403), f"refuses the key .*set {KEY}"),
        (refusal("API key not valid. Please pass a valid API key.", 400), f"set {KEY}"),
        (
            refusal("The model `m` does not exist or you do not have access to it.", 404),
            r"correct llm\.url or llm\.model",
        ),
        (refusal("Project does not have access to model m", 403, code="model_not_found"), "knows no model 'm'"),
        (refusal("m is not a valid model ID", 400), "knows no model 'm'"),
        (refusal("Model Not Exist"), "knows no model"),
        (Answer(status=404, body=b"<html>\n<h1>nothing\nhere</h1>"), r"correct llm\.url or llm\.model"),
        (Answer(status=405, body=b""), r"correct llm\.url or llm\.model"),
    ],
)
def test_a_wrong_key_model_or_url_ends_the_run_with_one_request(
    client: Callable[..., Client], answer: Answer, words: str
):
    one = client(answer)
    with pytest.raises(LlmFailed, match=words) as caught:
        one.ask(50)
    assert len(one.server.asked) == 1
    assert "\n" not in str(caught.value)


def test_a_page_in_place_of_a_reply_names_the_url(client: Callable[..., Client]):
    one = client(Answer(body=b"<html>\n<title>Sign in</title>\n</html>", headers={"Content-Type": "text/html"}))
    with pytest.raises(
        TooManyInvalidReplies,
        match=r"no-chat; the first: http://.*/v1 answers .*Sign in.*Correct llm\.url: it usually ends in /v1",
    ) as caught:
        one.ask(50, max_invalid_fraction=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_trying_again_takes_longer_each_time_and_ends(client: Callable[..., Client], status: int):
    one = client(refusal("later", status))
    (found,) = one.ask()
    assert found == InvalidReply("unanswered", f"6 tries failed: {status}: later")
    assert len(one.server.asked) == 6
    assert len(one.time.slept) == 5
    assert all(2**step <= pause <= 2**step + 1 for step, pause in enumerate(one.time.slept))


def dated(seconds: int) -> str:
    return datetime.fromtimestamp(Time().now + seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "pause"), [("121", 121), (dated(121), 121), ("600", 600), ("0.5", 0.5), (dated(90), 90)]
)
def test_a_pause_that_is_asked_for_is_kept_by_all(
    client: Callable[..., Client], header: str, pause: float, status: int
):
    arrived: list[float] = []

    def script(body: dict[str, Any], number: int) -> Answer:
        arrived.append(one.time.now)
        return refusal("slow down", status, {"Retry-After": header}) if number == 0 else Answer(GOOD)

    one = client(script)
    assert one.ask(20) == [EASY] * 20
    assert len(arrived) == 21
    assert min(arrived[1:]) - arrived[0] == pytest.approx(pause)
    assert sum(one.time.slept) == pytest.approx(pause)


@pytest.mark.parametrize("header", ["3600", dated(3600), "601"])
def test_a_longer_pause_ends_the_run_and_is_named(client: Callable[..., Client], header: str):
    one = client(refusal("daily limit", 429, {"Retry-After": header}))
    seconds = 601 if header == "601" else 3600
    with pytest.raises(LlmFailed, match=rf"left alone for {seconds} s, until 2026-11-25 1[23]:\d\d UTC") as caught:
        one.ask(50)
    assert "llm.max_retry_after allows 600 s" in str(caught.value)
    assert len(one.server.asked) == 1
    assert one.time.slept == []
    patient = client(
        lambda body, number: Answer(GOOD) if number else refusal("", 429, {"Retry-After": header}), max_retry_after=4e3
    )
    assert patient.ask() == [EASY]
    assert sum(patient.time.slept) == pytest.approx(seconds)


@pytest.mark.parametrize("header", ["", "soon", "-5", "0", "nan", "inf", "Mon, 99 Foo 2026", dated(-50), "9" * 400])
def test_a_pause_that_means_nothing_is_our_own(client: Callable[..., Client], header: str):
    one = client(lambda body, number: Answer(GOOD) if number else refusal("", 429, {"Retry-After": header}))
    assert one.ask() == [EASY]
    assert len(one.time.slept) == 1
    assert 1 <= one.time.slept[0] <= 2


def test_a_pause_of_ages_is_told(client: Callable[..., Client]):
    with pytest.raises(LlmFailed, match="until 9999-01-01"):
        client(refusal("", 429, {"Retry-After": "9" * 20})).ask()


# Keys.


@pytest.mark.parametrize(
    "raw",
    [
        "sk-secret\n",
        " sk-secret ",
        "\r\nsk-secret\t",
        "“sk-secret”",
        '"sk-secret"',
        "'sk-secret'\n",
        "«sk-secret»",
        "\ufeffsk-secret",
        "sk-secret\u200b",
        "\u00a0sk-secret",
        "„sk-secret“",
        "`sk-secret`",
    ],
)
def test_what_gets_around_a_key_is_stripped(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, raw: str):
    monkeypatch.setenv(KEY, raw)
    one = client(Answer(GOOD))
    assert one.ask() == [EASY]
    assert one.server.keys == {"Bearer sk-secret"}


@pytest.mark.parametrize(
    "raw", ["sk-sec\nret", "Bearer sk-secret", "sk-secrét", "sk-“secret", "sk-secret\x07", "sk secret"]
)
def test_what_is_no_key_is_refused_unseen(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, raw: str):
    monkeypatch.setenv(KEY, raw)
    with pytest.raises(LlmFailed, match=f"{KEY} holds no key") as caught:
        client(Answer(GOOD))
    assert "sk-" not in str(caught.value)
    assert "secr" not in str(caught.value)


def test_an_endpoint_may_repeat_the_key(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv(KEY, "my-own-kind-of-key")
    caplog.set_level("DEBUG")
    for answer in (
        refusal("Incorrect API key: my-own-kind-of-key (Bearer my-own-kind-of-key)", 401),
        refusal("my-own-kind-of-key", 400),
        Answer(body=b"<html>my-own-kind-of-key"),
        Answer(body=b'{"error": {"code": 402, "message": "my-own-kind-of-key"}}'),
        refusal("my-own-kind-of-key", 429, {"Retry-After": "3600"}),
        refusal("my-own-kind-of-key", 500),
    ):
        with pytest.raises((LlmFailed, TooManyInvalidReplies)) as caught:
            client(answer).ask(3, max_invalid_fraction=0.0)
        assert "my-own" not in str(caught.value)
    assert "my-own" not in caplog.text


def test_a_message_shows_no_key_of_a_common_shape():
    shown = one_line(
        "Incorrect key sk-ab12****wxyz, hf_abcdef, Bearer abc.def; see https://me:pass@host/?api_key=xyz&a=1"
    )
    for secret in ("ab12", "abcdef", "abc.def", "pass", "xyz"):
        assert secret not in shown
    assert shown.endswith("host/?api_key=***&a=1")


@given(st.binary(max_size=300), st.integers(400, 599))
def test_every_error_body_is_some_kind_of_error(content: bytes, status: int):
    found = error_of(status, {}, content, 0.0)
    assert found.kind in Kind
    assert "\n" not in found.text


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "error",
                        "choices",
                        "code",
                        "message",
                        "content",
                        "usage",
                        "finish_reason",
                        "object",
                        "prompt_tokens",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_no_reply_of_any_shape_surprises(body: Any):
    content = json.dumps(body).encode()
    inside = error_inside(json_body(content))
    if inside:
        error_of(inside[0], {}, inside[1], 0.0)
    with suppress(ValueError):
        parse_chat_reply(content, with_thinking=True)


# The public cases; each kind is tested at length above.


def falls_back(one: Client) -> None:
    assert one.ask(9) == [EASY] * 9
    assert len(one.server.asked) == 10


def reads_at_once(one: Client) -> None:
    assert one.ask() == [EASY]
    assert len(one.server.asked) == 1


def cut_off(one: Client) -> None:
    (found,) = one.ask()
    assert isinstance(found, InvalidReply)
    assert (found.reason, "raise rating.max_tokens" in found.detail) == ("cut-off", True)


def unknown_tokens(one: Client) -> None:
    assert one.ask() == [EASY]
    assert one.llm.usage.unmetered_replies == 1


def tried_again(one: Client) -> None:
    assert one.ask() == [EASY]
    assert len(one.server.asked) == 2


def thinking_told(one: Client) -> None:
    assert one.solve() == Solution(text="1+1=2.</think>2", truncated=False)


def no_money(one: Client) -> None:
    with pytest.raises(LlmFailed, match="has no money"):
        one.ask(9)
    assert len(one.server.asked) == 1


def kept_to_or_named(one: Client) -> None:
    with suppress(LlmFailed):
        assert one.ask() == [EASY]
        assert sum(one.time.slept) == 121
        return
    assert (len(one.server.asked), one.time.slept) == (1, [])


def stripped(one: Client) -> None:
    assert one.ask() == [EASY]
    assert one.server.keys == {"Bearer sk-1"}


CASES: dict[str, tuple[list[Script | Answer], Callable[[Client], None]]] = {
    "answers 400 to response_format json_schema, accepts json_object": (
        [lambda body, n: Answer(GOOD) if form(body) == "json_object" else NO_SCHEMA[0]],
        falls_back,
    ),
    "answers 400 to max_tokens, accepts max_completion_tokens": (
        [lambda body, n: NO_MAX_TOKENS[0] if "max_tokens" in body else Answer(GOOD)],
        falls_back,
    ),
    "reply is ```json fenced": ([Answer(FORMS[0])], reads_at_once),
    "reply is <think>…</think> and then JSON": ([Answer(FORMS[4])], reads_at_once),
    "content null, finish_reason length, reasoning filled": (
        [reply({"content": None, "reasoning": "Let me see"}, "length")],
        cut_off,
    ),
    "no usage field, no prices set": ([reply()], unknown_tokens),
    'HTTP 200 with {"error":{"code":429}}': (
        [lambda body, n: Answer(GOOD) if n else Answer(body=b'{"error":{"code":429}}')],
        tried_again,
    ),
    "content is a list of text chunks": (
        [reply({"content": [{"type": "text", "text": GOOD[:5]}, {"type": "text", "text": GOOD[5:]}]})],
        reads_at_once,
    ),
    "reasoning_content null or empty, reasoning filled": (
        [reply({"content": "2", "reasoning_content": empty, "reasoning": "1+1=2."}) for empty in (None, "")],
        thinking_told,
    ),
    "402, or 429 with insufficient_quota": ([NO_MONEY[0], NO_MONEY[3]], no_money),
    "Retry-After 121 or 3600": (
        [
            lambda body, n: Answer(GOOD) if n else refusal("", 429, {"Retry-After": "121"}),
            refusal("", 429, {"Retry-After": "3600"}),
        ],
        kept_to_or_named,
    ),
    "key with a trailing newline, spaces or typographic quotes": ([Answer(GOOD)], stripped),
}


def test_the_public_cases(
    client: Callable[..., Client], cases: Callable[[str], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY, " “sk-1” \n")
    told = {row["endpoint"] for row in cases("auxiliary_replies.jsonl")}
    settings = {name for name in told if name.startswith("--set")}  # see tests/conf/test_redaction.py
    assert told - settings == CASES.keys()
    for answers, check in CASES.values():
        for answer in answers:
            check(client(answer))
