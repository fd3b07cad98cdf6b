"""Which part of a text each of its tokens stands for, in time linear in their number, whatever the tokens are.

Knows: how tokenizers turn tokens into text. Must not know: checkpoints, traces, what the parts are for.

Most vocabularies are of bytes, so one character may be split over several tokens, and a text that a model wrote may
break off within one. Here each token is read as the bytes that it adds to a text, and the bytes of all are decoded in
one pass. As in the tokenizers themselves, a sequence of bytes that is no character reads as U+FFFD.
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
"""A token of one byte in vocabularies of characters (Llama 2, Gemma)."""


class Undecodable(ReadableError):
    """A text whose tokens do not read alone as they read together."""


class _Piece(NamedTuple):
    """What a token adds to a text: nothing where it is special."""

    content: bytes
    is_fallback: bool = False
    """Whether it is a byte of its own in a vocabulary of characters."""


class TokenReader:
    """Of one tokenizer. Holds at most its vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decode: Callable[[tuple[int, ...]], str]):
        """`decode` gives a text of tokens, special ones left out."""
        self._tokenizer, self._decode = tokenizer, decode
        self._alone: dict[int, str] = {}
        """Each token's text, as far as it has one by itself."""
        self._doubtful: dict[int, _Piece] = {}
        """Of these tokens what may read otherwise beside others of them."""

    def texts(self, token_ids: tuple[int, ...]) -> list[str]:
        """The text of each token; joined they are `decode(token_ids)`. A character that is split over tokens belongs to
        the last of them. Raises Undecodable for what cannot be told apart so."""
        for token in set(token_ids) - self._alone.keys():
            self._meet(token)
        whole, alone = self._decode(token_ids), [self._alone[token] for token in token_ids]
        return alone if "".join(alone) == whole else self._told_apart(token_ids, whole)

    def _told_apart(self, token_ids: tuple[int, ...], whole: str) -> list[str]:
        """Where some tokens read otherwise together."""
        texts: list[str] = []
        for is_doubtful, run in groupby(token_ids, key=self._doubtful.__contains__):
            ids = list(run)
            texts += _read([self._doubtful[i] for i in ids]) if is_doubtful else [self._alone[i] for i in ids]
        joined = "".join(texts)
        cut = len(joined) - len(whole)
        if cut > 0 and joined[:cut].isspace():  # some tokenizers strip the space that their first word begins with
            texts, joined = _without_first(texts, cut), joined[cut:]
        if joined != whole:
            raise Undecodable(f"{len(token_ids)} tokens whose texts do not join to the text that they are together")
        return texts

    def _meet(self, token: int) -> None:
        piece = self._piece(token)
        self._alone[token] = text = piece.content.decode(errors="replace")
        if not text or BROKEN in text or piece.is_fallback:
            self._doubtful[token] = piece

    def _piece(self, token: int) -> _Piece:
        alone, name = self._decode((token,)), str(self._tokenizer.convert_ids_to_tokens(token))
        fallback = FALLBACK.fullmatch(name)
        if fallback and alone != name:
            return _Piece(bytes.fromhex(fallback[1]), is_fallback=True)
        if BROKEN in alone:
            return _Piece(_bytes_of(name))
        return _Piece(self._decode((token, token)).removeprefix(alone).encode())  # as it reads behind another


def _read(pieces: Sequence[_Piece]) -> list[str]:
    """What each adds; those that add nothing part none."""
    told = iter(_read_together([piece for piece in pieces if piece.content]))
    return [next(told) if piece.content else "" for piece in pieces]


def _read_together(pieces: Iterable[_Piece]) -> list[str]:
    decoder, texts = codecs.getincrementaldecoder("utf-8")("replace"), list[str]()
    for is_fallback, run in groupby(pieces, lambda piece: piece.is_fallback):
        contents = [piece.content for piece in run]
        if is_fallback and not _is_text(b"".join(contents)):
            texts += [BROKEN] * len(contents)  # such tokenizers give up on all bytes that stand together
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
    """`texts` without the first `count` characters of what they are together."""
    left = []
    for text in texts:
        left.append(text[count:])
        count = max(0, count - len(text))
    return left


def _bytes_of(name: str) -> bytes:
    """Of a token by its name in a byte-level vocabulary, where each byte is written as one printable character. A token
    that was added by its text stands for that."""
    if all(char in BYTES for char in name):
        return bytes(BYTES[char] for char in name)
    return name.encode()


def _byte_names() -> dict[str, int]:
    """Bytes that are printable in Latin-1 are written as themselves, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTES = _byte_names()
