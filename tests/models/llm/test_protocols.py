"""Endpoints that support OpenAI's protocol in part, fail for many reasons, and reply in many forms."""

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
    """A clock that advances only by `sleep`."""

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
    """A client of a scripted endpoint, with its own clock."""

    def __init__(self, server: Chat, replies: ReplyStore, **settings: Any):
        self.time, self.server = Time(), server
        self.llm = LlmClient(
            Llm(url=server.url, model="m", **settings), replies, sleep=self.time.sleep, clock=self.time.clock
        )

    def ask(
        self, count: int = 1, max_invalid_fraction: float = 1.0, max_tokens: int = 50
    ) -> list[Grade | InvalidReply]:
        queries = [
            LlmQuery("Grade this.", f"problem {n}", Grade, max_tokens, limit="rating.max_tokens") for n in range(count)
        ]
        return self.llm.ask(queries, lambda done, tokens: None, max_invalid_fraction)

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
    """A chat completion without usage, unless `fields` contain it."""
    choices = [{"message": {"role": "assistant", **(message or {"content": GOOD})}, "finish_reason": finish}]
    return Answer(body=json.dumps({"choices": choices, **fields}).encode())


def form(body: dict[str, Any]) -> str:
    return body.get("response_format", {}).get("type", "text")


def prompt(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


# Unsupported features are found once, and all queries are answered.

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
def test_an_unsupported_schema_moves_into_the_prompt(client: Callable[..., Client], answer: Answer, taken: str):
    steps = ["json_schema", "json_object", "text"]
    asker = client(lambda body, number: Answer(GOOD) if steps.index(form(body)) >= steps.index(taken) else answer)
    assert asker.ask(20) == [EASY] * 20
    forms = [form(body) for body in asker.server.asked]
    assert forms == [*steps[: steps.index(taken)], *[taken] * 20]
    messages = asker.server.asked[-1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert '"maxLength": 200' in messages[0]["content"]
    assert "JSON" in messages[0]["content"]  # without the word, OpenAI refuses json_object
    assert messages[1]["content"].startswith("problem")
    assert asker.llm.notes[0].startswith(f"{asker.server.url} does not take ")
    assert asker.time.slept == []
    assert asker.ask(25) == [EASY] * 25
    assert [form(body) for body in asker.server.asked[len(forms) :]] == [taken] * 5  # for the client's lifetime
    assert asker.llm.notes == []


def test_adapted_requests_find_the_same_cached_replies(client: Callable[..., Client], replies: ReplyStore):
    picky = client(lambda body, number: refusal("no json_schema") if form(body) == "json_schema" else Answer(GOOD))
    assert picky.ask(3) == [EASY] * 3
    again = Client(picky.server, replies)
    assert again.ask(3) == [EASY] * 3
    assert len(picky.server.asked) == 4


def test_refused_requests_cost_nothing(client: Callable[..., Client]):
    asker = client(
        lambda body, number: refusal("response_format") if form(body) != "text" else Answer(GOOD),
        price_in=1.0,
        price_out=1.0,
        cap=0.01,
    )
    assert asker.ask(3) == [EASY] * 3
    assert asker.llm.usage.money == pytest.approx(3 * 110e-6)
    assert (asker.llm.usage.prompt_tokens, asker.llm.usage.generated_tokens) == (300, 30)


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
def test_max_completion_tokens_replaces_max_tokens(client: Callable[..., Client], answer: Answer):
    asker = client(lambda body, number: answer if "max_tokens" in body else Answer(GOOD))
    assert asker.ask(20) == [EASY] * 20
    last = asker.server.asked[-1]
    assert (last["max_completion_tokens"], form(last)) == (50, "json_schema")
    assert sum("max_tokens" in body for body in asker.server.asked) == len(asker.server.asked) - 20


NO_TEMPERATURE = refusal(
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
    param="temperature",
    code="unsupported_value",
)


def test_a_model_without_temperature_max_tokens_and_top_p(client: Callable[..., Client]):
    def script(body: dict[str, Any], number: int) -> Answer:
        if "max_tokens" in body:
            return NO_MAX_TOKENS[0]
        if "temperature" in body:
            return NO_TEMPERATURE
        return refusal("Unsupported parameter: 'top_p'") if "top_p" in body else reply({"content": "a</think>b"})

    asker = client(script)
    assert asker.solve() == Solution(text="a</think>b", truncated=False)
    assert len(asker.server.asked) == 4
    assert asker.server.asked[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_an_endpoint_without_system_messages(client: Callable[..., Client]):
    asker = client(
        lambda body, number: refusal("System role not supported") if len(body["messages"]) > 1 else Answer(GOOD)
    )
    assert asker.ask(5) == [EASY] * 5
    assert len(asker.server.asked) == 6
    assert asker.server.asked[-1]["messages"][0]["content"].startswith("Grade this.\n\nproblem")


def test_other_unsupported_parameters_are_named(client: Callable[..., Client]):
    asker = client(refusal("Unknown parameter: 'model_kwargs'"))
    (found,) = asker.ask()
    assert found == InvalidReply("refused", "400: Unknown parameter: 'model_kwargs'")
    with pytest.raises(TooManyInvalidReplies, match="refused; the first: 400: Unknown parameter: 'model_kwargs'"):
        asker.ask(20, max_invalid_fraction=0.1)


def test_after_the_first_answer_a_bad_request_concerns_one_query(client: Callable[..., Client]):
    asker = client(lambda body, number: refusal("Bad Request") if "problem 3" in prompt(body) else Answer(GOOD))
    found = asker.ask(5)
    assert [getattr(answer, "reason", "fine") for answer in found] == ["fine", "fine", "fine", "refused", "fine"]
    assert len(asker.server.asked) == 5


def test_a_limit_beyond_the_context_is_too_long(client: Callable[..., Client]):
    for words in (
        "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum is 2048",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "Range of max_tokens should be [1, 8192]",
    ):
        asker = client(refusal(words, param="max_tokens"))
        with pytest.raises(TooManyInvalidReplies, match=r"too-long; .*Lower rating\.max_tokens"):
            asker.ask(3, max_invalid_fraction=0.1)
        assert all("max_tokens" in body for body in asker.server.asked)


# Forms of replies.

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
def test_json_is_found_without_a_repair(client: Callable[..., Client], content: str):
    asker = client(Answer(content))
    assert asker.ask() == [EASY]
    assert len(asker.server.asked) == 1


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
def test_formulas_with_and_without_escaped_backslashes(client: Callable[..., Client], text: str, escaped: bool):
    encoded = json.dumps(text) if escaped else f'"{text}"'
    if escaped or ("\\\\" not in text and text.isprintable()):
        assert client(Answer(f'{{"level": 3, "note": {encoded}}}')).ask() == [Grade(level=3, note=text)]


@given(st.lists(st.one_of(st.text(alphabet=st.characters(exclude_characters="{}"), max_size=20), st.booleans())))
def test_all_json_objects_are_found_in_order(parts: list[str | bool]):
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
def test_the_nonempty_thinking_field_is_used(client: Callable[..., Client], fields: dict[str, Any]):
    solved = client(reply({"content": "2", **fields}, usage=USAGE)).solve()
    assert solved == Solution(text="1+1=2.</think>2", truncated=False)
    assert client(reply({"content": GOOD, **fields})).ask() == [EASY]  # not part of a structured reply


def test_thinking_in_chunks_is_used(client: Callable[..., Client]):
    chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": "1+1=2."}]}, {"type": "text", "text": "2"}]
    assert client(reply({"content": chunks})).solve() == Solution(text="1+1=2.</think>2", truncated=False)


def test_thinking_that_uses_all_tokens_names_the_roles_limit(client: Callable[..., Client]):
    asker = client(reply({"content": None, "reasoning": "Let me see"}, finish="length", usage=USAGE))
    (found,) = asker.ask()
    assert found == InvalidReply("cut-off", "it is longer than 50 tokens, thinking included; raise rating.max_tokens")
    assert len(asker.server.asked) == 1  # a repair would end the same way
    with pytest.raises(TooManyInvalidReplies, match=r"cut-off; .*Raise rating\.max_tokens"):
        asker.ask(20, max_invalid_fraction=0.1)


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
def test_truncation_has_many_names(client: Callable[..., Client], answer: Answer):
    with pytest.raises(TooManyInvalidReplies, match=r"cut-off; .*Raise rating\.max_tokens"):
        client(answer).ask(20, max_invalid_fraction=0.1)


def test_a_higher_limit_repeats_only_truncated_queries(client: Callable[..., Client]):
    def script(body: dict[str, Any], number: int) -> Answer:
        return Answer("", finish="length") if "problem 1" in prompt(body) and body["max_tokens"] == 50 else Answer(GOOD)

    asker = client(script)
    assert [getattr(found, "reason", "fine") for found in asker.ask(3)] == ["fine", "cut-off", "fine"]
    assert asker.ask(3, max_tokens=500) == [EASY] * 3
    assert len(asker.server.asked) == 4
    assert asker.ask(3, max_tokens=500) == [EASY] * 3
    assert len(asker.server.asked) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply({"content": None}, finish="content_filter", usage=USAGE), "filtered"),
        (reply({"content": GOOD}, finish="content_filter", usage=USAGE), "filtered"),
        (reply({"content": ""}, finish="SAFETY", usage=USAGE), "filtered"),
        (reply({"content": None, "refusal": "I cannot help with that."}, usage=USAGE), "declined"),
    ],
)
def test_withheld_replies_are_counted_paid_and_cached(client: Callable[..., Client], answer: Answer, reason: str):
    asker = client(answer, price_in=1.0, price_out=1.0)
    for _ in range(2):
        (found,) = asker.ask()
        assert isinstance(found, InvalidReply)
        assert found.reason == reason
    assert len(asker.server.asked) == 1


def test_a_flagged_query_does_not_end_the_run(client: Callable[..., Client]):
    flagged = refusal("Your chosen model requires moderation and your input was flagged", 403)
    asker = client(lambda body, number: flagged if "problem 1" in prompt(body) else Answer(GOOD))
    assert [getattr(found, "reason", "fine") for found in asker.ask(3)] == ["fine", "filtered", "fine"]


# Missing usage.

MISSING_USAGE = [
    None,
    {},
    {"prompt_tokens": None, "completion_tokens": None},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": -1, "completion_tokens": 1e400},
    5,
    "many",
    {"prompt_tokens": 10**30, "completion_tokens": "12"},
]


@pytest.mark.parametrize("usage", MISSING_USAGE)
def test_missing_usage_is_counted_as_unknown(client: Callable[..., Client], replies: ReplyStore, usage: Any):
    asker = client(reply(usage=usage) if usage is not None else reply())
    for current, reused in ((asker, 0), (Client(asker.server, replies), 2)):
        assert current.ask(2) == [EASY] * 2
        usage_of_run = current.llm.usage
        assert (usage_of_run.prompt_tokens, usage_of_run.generated_tokens, usage_of_run.money) == (0, 0, 0.0)
        assert (usage_of_run.unmetered_replies, usage_of_run.reused_completions) == (2, reused)
        assert current.llm.notes == [
            f"{asker.server.url} reported no usage for 2 replies: their tokens are not counted"
        ]


def test_missing_usage_is_priced_at_its_maximum(client: Callable[..., Client]):
    asker = client(reply(), price_out=1e6, cap=120.0)  # 50 tokens at most, 1 each
    with pytest.raises(CapReached, match="2 of 3 queries are answered"):
        asker.ask(3)
    assert asker.llm.usage.money == pytest.approx(100.0)
    assert "counted at its highest possible price" in asker.llm.notes[0]
    with pytest.raises(CapReached, match="2 of 3 queries are answered"):
        Client(asker.server, asker.llm._replies, price_out=1e6, cap=120.0).ask(3)
    assert len(asker.server.asked) == 2
    half = client(reply(usage={"prompt_tokens": 7, "completion_tokens": None}), price_in=1e6, price_out=1e6)
    half.ask()
    assert half.llm.usage.money == pytest.approx(57.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_cap_holds_whatever_usage_is_reported(client: Callable[..., Client], seed: int):
    rng = random.Random(seed)
    true_cost = 0.0

    def script(body: dict[str, Any], number: int) -> Answer:
        nonlocal true_cost
        if rng.random() < 0.3:
            return rng.choice([refusal("response_format"), refusal("slow down", 429), refusal("broken", 500)])
        tokens = rng.randint(1, 50)
        true_cost += tokens
        return reply(usage=rng.choice([None, {"prompt_tokens": 9, "completion_tokens": tokens}]))

    cap = rng.uniform(60, 900)
    asker = client(script, price_out=1e6, cap=cap, max_concurrency=rng.randint(1, 6))
    with pytest.raises(CapReached):
        asker.ask(100)
    assert true_cost <= asker.llm.usage.money + 1e-6 <= cap + 2e-6


# Errors, and whether they end the run.


@pytest.mark.parametrize("code", [429, "429", "rate_limit_exceeded", 500, "server_error", 502, None, "overloaded"])
@pytest.mark.parametrize("inside", ["error", "choice", "object"])
def test_an_error_inside_a_reply_is_retried(client: Callable[..., Client], code: Any, inside: str):
    error = {"message": "Provider returned error", "code": code}
    body = {
        "error": {"error": error},
        "choice": {"choices": [{"error": error, "message": {"content": ""}}]},
        "object": {"object": "error", **error},
    }[inside]
    asker = client(lambda _, number: Answer(GOOD) if number else Answer(body=json.dumps(body).encode()))
    assert asker.ask() == [EASY]
    assert len(asker.server.asked) == 2


def test_an_error_inside_a_reply_keeps_its_meaning(client: Callable[..., Client]):
    for error, words in (
        ({"code": 401, "message": "No auth"}, f"set {KEY}"),
        ({"code": 402, "message": "x"}, "has no money"),
        ({"message": "Insufficient credits"}, "has no money"),
        ({"code": 404, "message": "x"}, "knows no model"),
    ):
        asker = client(Answer(body=json.dumps({"error": error}).encode()))
        with pytest.raises(LlmFailed, match=words):
            asker.ask(20)
        assert len(asker.server.asked) == 1
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
    asker = client(answer)
    with pytest.raises(LlmFailed, match=rf"the account at {asker.server.url} has no money .*top it up") as caught:
        asker.ask(50)
    assert len(asker.server.asked) == 1
    assert "\n" not in str(caught.value)
    assert asker.time.slept == []


@pytest.mark.parametrize(
    "answer",
    [
        refusal("You exceeded your current quota", 429, code="RESOURCE_EXHAUSTED"),
        refusal("Insufficient credits", 402, {"Retry-After": "2"}, limit_source="openrouter_in_flight_budget"),
    ],
)
def test_a_quota_that_refills_is_awaited(client: Callable[..., Client], answer: Answer):
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
    asker = client(answer)
    with pytest.raises(LlmFailed, match=words) as caught:
        asker.ask(50)
    assert len(asker.server.asked) == 1
    assert "\n" not in str(caught.value)


def test_a_web_page_as_reply_names_the_url(client: Callable[..., Client]):
    asker = client(Answer(body=b"<html>\n<title>Sign in</title>\n</html>", headers={"Content-Type": "text/html"}))
    with pytest.raises(
        TooManyInvalidReplies,
        match=r"no-chat; the first: http://.*/v1 answers .*Sign in.*Correct llm\.url: it usually ends in /v1",
    ) as caught:
        asker.ask(50, max_invalid_fraction=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_retries_back_off_and_end(client: Callable[..., Client], status: int):
    asker = client(refusal("later", status))
    (found,) = asker.ask()
    assert found == InvalidReply("unanswered", f"6 tries failed: {status}: later")
    assert len(asker.server.asked) == 6
    assert len(asker.time.slept) == 5
    assert all(2**step <= pause <= 2**step + 1 for step, pause in enumerate(asker.time.slept))


def dated(seconds: int) -> str:
    return datetime.fromtimestamp(Time().now + seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "pause"), [("121", 121), (dated(121), 121), ("600", 600), ("0.5", 0.5), (dated(90), 90)]
)
def test_a_requested_pause_delays_all_requests(client: Callable[..., Client], header: str, pause: float, status: int):
    arrived: list[float] = []

    def script(body: dict[str, Any], number: int) -> Answer:
        arrived.append(asker.time.now)
        return refusal("slow down", status, {"Retry-After": header}) if number == 0 else Answer(GOOD)

    asker = client(script)
    assert asker.ask(20) == [EASY] * 20
    assert len(arrived) == 21
    assert min(arrived[1:]) - arrived[0] == pytest.approx(pause)
    assert sum(asker.time.slept) == pytest.approx(pause)


@pytest.mark.parametrize("header", ["3600", dated(3600), "601"])
def test_a_longer_pause_ends_the_run_and_is_named(client: Callable[..., Client], header: str):
    asker = client(refusal("daily limit", 429, {"Retry-After": header}))
    seconds = 601 if header == "601" else 3600
    with pytest.raises(LlmFailed, match=rf"asks for a pause of {seconds} s, until 2026-11-25 1[23]:\d\d UTC") as caught:
        asker.ask(50)
    assert "llm.max_retry_after allows 600 s" in str(caught.value)
    assert len(asker.server.asked) == 1
    assert asker.time.slept == []
    patient = client(
        lambda body, number: Answer(GOOD) if number else refusal("", 429, {"Retry-After": header}), max_retry_after=4e3
    )
    assert patient.ask() == [EASY]
    assert sum(patient.time.slept) == pytest.approx(seconds)


@pytest.mark.parametrize("header", ["", "soon", "-5", "0", "nan", "inf", "Mon, 99 Foo 2026", dated(-50), "9" * 400])
def test_a_meaningless_pause_is_ignored(client: Callable[..., Client], header: str):
    asker = client(lambda body, number: Answer(GOOD) if number else refusal("", 429, {"Retry-After": header}))
    assert asker.ask() == [EASY]
    assert len(asker.time.slept) == 1
    assert 1 <= asker.time.slept[0] <= 2


def test_a_very_long_pause_is_reported(client: Callable[..., Client]):
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
def test_characters_around_a_key_are_stripped(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, raw: str):
    monkeypatch.setenv(KEY, raw)
    asker = client(Answer(GOOD))
    assert asker.ask() == [EASY]
    assert asker.server.keys == {"Bearer sk-secret"}


@pytest.mark.parametrize(
    "raw", ["sk-sec\nret", "Bearer sk-secret", "sk-secrét", "sk-“secret", "sk-secret\x07", "sk secret"]
)
def test_an_invalid_key_is_refused_and_not_shown(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, raw: str
):
    monkeypatch.setenv(KEY, raw)
    with pytest.raises(LlmFailed, match=f"{KEY} holds no key") as caught:
        client(Answer(GOOD))
    assert "sk-" not in str(caught.value)
    assert "secr" not in str(caught.value)


def test_a_key_repeated_by_the_endpoint_is_hidden(
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


def test_messages_hide_common_key_formats():
    shown = one_line(
        "Incorrect key sk-ab12****wxyz, hf_abcdef, Bearer abc.def; see https://me:pass@host/?api_key=xyz&a=1"
    )
    for secret in ("ab12", "abcdef", "abc.def", "pass", "xyz"):
        assert secret not in shown
    assert shown.endswith("host/?api_key=***&a=1")


@given(st.binary(max_size=300), st.integers(400, 599))
def test_every_error_body_is_classified(content: bytes, status: int):
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
def test_replies_of_any_shape_are_handled(body: Any):
    content = json.dumps(body).encode()
    inside = error_inside(json_body(content))
    if inside:
        error_of(inside[0], {}, inside[1], 0.0)
    with suppress(ValueError):
        parse_chat_reply(content, with_thinking=True)


# The public cases; each kind is tested in detail above.


def falls_back(asker: Client) -> None:
    assert asker.ask(9) == [EASY] * 9
    assert len(asker.server.asked) == 10


def reads_at_once(asker: Client) -> None:
    assert asker.ask() == [EASY]
    assert len(asker.server.asked) == 1


def cut_off(asker: Client) -> None:
    (found,) = asker.ask()
    assert isinstance(found, InvalidReply)
    assert (found.reason, "raise rating.max_tokens" in found.detail) == ("cut-off", True)


def unknown_tokens(asker: Client) -> None:
    assert asker.ask() == [EASY]
    assert asker.llm.usage.unmetered_replies == 1


def tried_again(asker: Client) -> None:
    assert asker.ask() == [EASY]
    assert len(asker.server.asked) == 2


def thinking_is_read(asker: Client) -> None:
    assert asker.solve() == Solution(text="1+1=2.</think>2", truncated=False)


def no_money(asker: Client) -> None:
    with pytest.raises(LlmFailed, match="has no money"):
        asker.ask(9)
    assert len(asker.server.asked) == 1


def pause_is_kept_or_named(asker: Client) -> None:
    with suppress(LlmFailed):
        assert asker.ask() == [EASY]
        assert sum(asker.time.slept) == 121
        return
    assert (len(asker.server.asked), asker.time.slept) == (1, [])


def stripped(asker: Client) -> None:
    assert asker.ask() == [EASY]
    assert asker.server.keys == {"Bearer sk-1"}


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
        thinking_is_read,
    ),
    "402, or 429 with insufficient_quota": ([NO_MONEY[0], NO_MONEY[3]], no_money),
    "Retry-After 121 or 3600": (
        [
            lambda body, n: Answer(GOOD) if n else refusal("", 429, {"Retry-After": "121"}),
            refusal("", 429, {"Retry-After": "3600"}),
        ],
        pause_is_kept_or_named,
    ),
    "key with a trailing newline, spaces or typographic quotes": ([Answer(GOOD)], stripped),
}


def test_the_public_cases(
    client: Callable[..., Client], cases: Callable[[str], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY, " “sk-1” \n")
    endpoints = {row["endpoint"] for row in cases("auxiliary_replies.jsonl")}
    settings = {name for name in endpoints if name.startswith("--set")}  # see tests/conf/test_redaction.py
    assert endpoints - settings == CASES.keys()
    for answers, check in CASES.values():
        for answer in answers:
            check(client(answer))


# Images.

PNG, JPEG = b"\x89PNG of a test", b"\xff\xd8 of a test"


def seen(asker: Client, images: tuple[bytes, ...]) -> Grade | InvalidReply:
    query = LlmQuery("Grade this.", "problem", Grade, 50, images=images)
    return asker.llm.ask([query], lambda done, tokens: None)[0]


def test_an_endpoint_that_takes_images_sees_them_before_the_text(client: Callable[..., Client]):
    asker = client(Answer(GOOD), images=True)
    assert seen(asker, (PNG, JPEG)) == EASY
    *shown, text = asker.server.asked[-1]["messages"][1]["content"]
    assert [part["image_url"]["url"].partition(",")[0] for part in shown] == [
        "data:image/png;base64",
        "data:image/jpeg;base64",
    ]
    assert text == {"type": "text", "text": "problem"}
    assert seen(asker, ()) == EASY
    assert asker.server.asked[-1]["messages"][1]["content"] == "problem"


def test_another_endpoint_gets_the_text_alone(client: Callable[..., Client]):
    asker = client(Answer(GOOD))
    assert seen(asker, (PNG,)) == EASY
    assert asker.server.asked[-1]["messages"][1]["content"] == "problem"


def test_images_are_part_of_a_replys_key(client: Callable[..., Client]):
    asker = client(Answer(GOOD), images=True)
    for images in ((PNG,), (JPEG,), (PNG,), (PNG, JPEG)):
        seen(asker, images)
    assert len(asker.server.asked) == 3


def test_images_survive_what_an_endpoint_does_not_support(client: Callable[..., Client]):
    """Neither system messages nor schemas: their texts are put beside the images."""

    def strict(body: dict[str, Any], number: int) -> Answer:
        if form(body) != "text":
            return refusal("response_format is not supported")
        if body["messages"][0]["role"] == "system":
            return refusal("role: system is not supported")
        return Answer(GOOD)

    asker = client(strict, images=True)
    assert seen(asker, (PNG,)) == EASY
    (message,) = asker.server.asked[-1]["messages"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds.count("image_url") == 1
    told = "".join(part.get("text", "") for part in message["content"])
    assert told.startswith("Grade this.\n\nReply with one JSON object")
    assert told.endswith("}\n\nproblem")


def test_an_images_price_is_reckoned_before_it_is_asked(client: Callable[..., Client]):
    asker = client(Answer(GOOD), images=True, price_in=1000.0, cap=8.0)
    with pytest.raises(CapReached):
        seen(asker, (PNG,))
    assert asker.server.asked == []
