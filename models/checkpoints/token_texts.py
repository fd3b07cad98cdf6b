"""Splits a text into the texts of its tokens, in linear time, for any tokenizer.

Most vocabularies consist of bytes, so one character may span several tokens, and a sampled text may end within one.
Each token is therefore read as the bytes that it adds, and all bytes are decoded in one pass. As in the tokenizers
themselves, an invalid byte sequence becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import ReadableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""The name of a byte token in character-based vocabularies (Llama 2, Gemma)."""


class Undecodable(ReadableError):
    """The texts of single tokens do not join to the text of all."""


class _Piece(NamedTuple):
    """The bytes that a token adds to a text; none for a special token."""

    content: bytes
    is_fallback: bool = False
    """Whether it is a byte token of a character-based vocabulary."""


class TokenReader:
    """Splits texts of one tokenizer. Its caches hold at most the vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decode: Callable[[Sequence[int]], str]):
        """`decode`: from token ids to text, without special tokens."""
        self._tokenizer, self._decode = tokenizer, decode
        self._alone: dict[int, str] = {}
        """The text of each token on its own."""
        self._context_dependent: dict[int, _Piece] = {}
        """Tokens whose text may depend on their neighbours."""

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they are `decode(token_ids)`. A character that spans several tokens belongs
        to the last of them. Raises Undecodable if no such split exists."""
        for token in set(token_ids) - self._alone.keys():
            self._add(token)
        text, alone = self._decode(token_ids), [self._alone[token] for token in token_ids]
        return alone if "".join(alone) == text else self._split_in_context(token_ids, text)

    def _split_in_context(self, token_ids: Sequence[int], text: str) -> list[str]:
        """As `texts`, where some tokens depend on their neighbours."""
        texts: list[str] = []
        for is_dependent, run in groupby(token_ids, key=self._context_dependent.__contains__):
            ids = list(run)
            texts += _read([self._context_dependent[i] for i in ids]) if is_dependent else [self._alone[i] for i in ids]
        joined = "".join(texts)
        cut = len(joined) - len(text)
        if cut > 0 and joined[:cut].isspace():  # some tokenizers strip the leading space of a text
            texts, joined = _without_first(texts, cut), joined[cut:]
        if joined != text:
            raise Undecodable(f"{len(token_ids)} tokens whose single texts do not join to their common text")
        return texts

    def _add(self, token: int) -> None:
        piece = self._piece(token)
        self._alone[token] = text = piece.content.decode(errors="replace")
        if not text or BROKEN in text or piece.is_fallback:
            self._context_dependent[token] = piece

    def _piece(self, token: int) -> _Piece:
        alone, name = self._decode((token,)), str(self._tokenizer.convert_ids_to_tokens(token))
        fallback = FALLBACK.fullmatch(name)
        if fallback and alone != name:
            return _Piece(bytes.fromhex(fallback[1]), is_fallback=True)
        if BROKEN in alone:
            return _Piece(_bytes_of(name))
        return _Piece(self._decode((token, token)).removeprefix(alone).encode())  # its text after another token


def _read(pieces: Sequence[_Piece]) -> list[str]:
    """The text of each piece. Empty pieces do not interrupt a character."""
    texts = iter(_read_together([piece for piece in pieces if piece.content]))
    return [next(texts) if piece.content else "" for piece in pieces]


def _read_together(pieces: Iterable[_Piece]) -> list[str]:
    decoder, texts = codecs.getincrementaldecoder("utf-8")("replace"), list[str]()
    for is_fallback, run in groupby(pieces, lambda piece: piece.is_fallback):
        contents = [piece.content for piece in run]
        if is_fallback and not _is_text(b"".join(contents)):
            texts += [BROKEN] * len(contents)  # such tokenizers replace the whole run of bytes
        else:
            texts += [decoder.decode(content) for content in contents]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_first(texts: Sequence[str], count: int) -> list[str]:
    """`texts` without the first `count` characters of the joined text."""
    left = []
    for text in texts:
        left.append(text[count:])
        count = max(0, count - len(text))
    return left


def _bytes_of(name: str) -> bytes:
    """The bytes of a token, from its name in a byte-level vocabulary, which writes each byte as one printable
    character. The name of an added token is its text."""
    if all(char in BYTES for char in name):
        return bytes(BYTES[char] for char in name)
    return name.encode()


def _byte_names() -> dict[str, int]:
    """The characters of byte-level vocabularies: printable Latin-1 bytes stand for themselves, the others are mapped
    from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTES = _byte_names()
