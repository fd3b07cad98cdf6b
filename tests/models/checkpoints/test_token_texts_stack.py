"""Token texts with real vocabularies: arbitrary ids, and real text cut at any token."""

import gzip
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from models.checkpoints.checkpoint import TINY_MODEL
from models.checkpoints.token_texts import TokenReader, Undecodable

REAL = ("qwen3", "llama3_1", "deepseek_v3", "gptoss")
PIECES = (
    "Wait, ",
    "12 apples",
    "\n\n",
    "😀",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "等等，",
    "再试",
    "𠜎𠮷",
    "é",
    "e\u0301",
    "ñ\u0303\u0323",
    "한국어",
    "שלום",
    "ไทย",
    "x²≤π",
    "\ufffd",
    "\ufffd\ufffd",
    "\u00a0",
    "\u200d",
    "\r\n",
    "\t",
    "</think>",
    "<think>",
    "\\boxed{",
    "\x00",
    "\U0010ffff",
    "  ",
    "ﬁ",
)


class Read:
    """A tokenizer with its TokenReader."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.reader = TokenReader(tokenizer, self.decode)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def texts(self, ids: tuple[int, ...]) -> list[str]:
        texts = self.reader.texts(ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == self.decode(ids)
        return texts


@pytest.fixture(scope="module")
def read(real_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Read]:
    @cache
    def opened(name: str) -> Read:
        file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        if name == "tiny":
            file = TINY_MODEL / "tokenizer.json"
        else:
            file.write_bytes(gzip.decompress((real_tokenizers / name / "tokenizer.json.gz").read_bytes()))
        return Read(PreTrainedTokenizerFast(tokenizer_file=str(file)))

    return opened


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_join_to_their_text(read: Callable[[str], Read], name: str, data: st.DataObject):
    one = read(name)
    last = one.size + 3  # an engine's vocabulary may be padded
    ids = st.one_of(st.integers(0, last), st.integers(0, 300), st.sampled_from(one.encode("😀等é\ufffd")))
    one.texts(tuple(data.draw(st.lists(ids, max_size=40))))


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12), seed=st.integers(0, 10**6))
@example(parts=["half an emoji 😀"], seed=0)
def test_real_text_may_be_cut_at_any_token(read: Callable[[str], Read], name: str, parts: list[str], seed: int):
    one = read(name)
    ids = one.encode("".join(parts))
    start, end = sorted(random.Random(seed).choices(range(len(ids) + 1), k=2))
    for piece in (ids, ids[:end], ids[start:], ids[start:end]):
        one.texts(piece)


def test_a_split_character_belongs_to_its_last_token(read: Callable[[str], Read]):
    one = read("deepseek_v3")
    ids = one.encode("naïve 😀!")
    assert [one.tokenizer.convert_ids_to_tokens(token) for token in ids] == ["na", "Ã¯ve", "ĠðŁĺ", "Ģ", "!"]
    assert one.texts(ids) == ["na", "ïve", " ", "😀", "!"]
    assert one.texts(ids[:3]) == ["na", "ïve", " \ufffd"]
    assert one.texts(ids[3:]) == ["\ufffd", "!"]


def test_a_literal_replacement_character_keeps_its_place(read: Callable[[str], Read]):
    one = read("qwen3")
    texts = one.texts(one.encode("a\ufffdb wait"))
    assert [text for text in texts if text][-2:] != ["", "\ufffdb wait"]
    assert texts[-1] == " wait"


def test_special_tokens_have_no_text_and_split_no_character(read: Callable[[str], Read]):
    one = read("deepseek_v3")
    first, second = one.encode("😀")
    end = one.tokenizer.convert_tokens_to_ids("<｜end▁of▁sentence｜>")
    assert isinstance(end, int)
    assert one.texts((first, end, second, end)) == ["", "", "😀", ""]
    assert one.texts((first, end)) == ["\ufffd", ""]


@pytest.mark.parametrize("name", [*REAL, "tiny"])
def test_broken_bytes_take_linear_time_and_no_memory(read: Callable[[str], Read], name: str):
    one = read(name)
    halves = [ids[:1] for char in "😀𠜎等é" if len(ids := one.encode(char)) > 1]
    rest = [ids[1:] for char in "😀𠜎等é" if len(ids := one.encode(char)) > 1]
    for part in (*halves[:1], *rest[:1], sum(halves, ()), sum(rest, ())):
        ids = (part * 8_000)[:8_000]
        one.texts(ids)
        began = time.process_time()
        texts = one.texts(ids)
        assert time.process_time() - began < 0.5
        assert sum(text != "" for text in texts) > 1_000
    assert len(one.reader._alone) <= one.size + 10


def test_character_vocabularies_with_byte_fallback():
    """As in Llama 2 and Gemma: `▁` is a space, the first one is stripped, and a run of invalid bytes is broken as a
    whole."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Ann", "▁has", "s", "▁▁"]
    tokenizer = Tokenizer(BPE({name: index for index, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    one, code = Read(PreTrainedTokenizerFast(tokenizer_object=tokenizer)), names.index

    def fallback(text: bytes) -> tuple[int, ...]:
        return tuple(code(f"<0x{byte:02X}>") for byte in text)

    ann = (code("<s>"), code("▁Ann"), code("▁has"))
    assert one.texts(ann) == ["", "Ann", " has"]
    assert one.texts((*ann, *fallback("😀".encode()), code("s"))) == ["", "Ann", " has", "", "", "", "😀", "s"]
    assert one.texts((*ann, *fallback("A😀".encode()[:4]))) == ["", "Ann", " has", *["\ufffd"] * 4]
    for seed in range(300):
        rng = random.Random(seed)
        one.texts(tuple(rng.choices(range(len(names)), k=20)))


def test_a_tokenizer_that_strips_the_first_space():
    vocabulary = {name: index for index, name in enumerate(["▁Ann", "▁has", "▁", "s"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="s"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    one = Read(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert one.texts((0, 1, 3)) == ["Ann", " has", "s"]
    assert one.texts((2, 0, 2)) == ["", " Ann", " "]
    assert one.texts((3, 0)) == ["s", " Ann"]


def test_context_dependent_texts_raise():
    def upper_among_others(ids: Sequence[int]) -> str:
        text = "".join("ab"[token] for token in ids)
        return text.upper() if len(ids) > 2 else text

    class Named:
        def convert_ids_to_tokens(self, token: int) -> str:
            return "ab"[token]

    reader: Any = TokenReader(Named(), upper_among_others)  # type: ignore[arg-type]
    assert reader.texts((0, 1)) == ["a", "b"]
    with pytest.raises(Undecodable, match="3 tokens whose single texts do not join"):
        reader.texts((0, 1, 0))


def test_the_public_case_of_a_truncated_emoji(
    cases: Callable[[str], list[dict[str, Any]]], read: Callable[[str], Read]
):
    (case,) = (row for row in cases("checkpoints.jsonl") if "trace" in row)
    assert "half an emoji" in case["trace"]
    one = read("deepseek_v3")
    end = one.tokenizer.convert_tokens_to_ids("<｜end▁of▁sentence｜>")
    assert isinstance(end, int)
    assert "".join(one.texts((*one.encode("So it is 4. 😀")[:-1], end))) == "So it is 4. \ufffd"
