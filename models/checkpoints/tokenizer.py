"""Loads a checkpoint's tokenizer as its tokenizer.json defines it.

transformers replaces the file's pre-tokenizer with that of the architecture's own class: with `LlamaTokenizerFast` on a
byte-level vocabulary (DeepSeek-R1-Distill-Llama), spaces are lost. The model was trained with the file.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.checkpoints.files import CheckpointError, first_line, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

SAMPLES = (
    "Ann has 12 apples.",
    "Line one\n\n  two spaces,\ttab, 1,234.5 and 2024-06-01 …",
    "Let $f(x) = \\frac{x^2 + 3}{\\sqrt{2}}$ — is x ≤ π? \\boxed{\\left\\{ 1, 2 \\right\\}}",
    "从前有座山，共有12个苹果。다음 식의 값을 구하시오.",
    "Ça coûte 5 €, ¿verdad? 🙂👩‍🔬",
)
"""Texts that must survive encoding and decoding."""
_LOADING = threading.Lock()
"""transformers imports lazily; two threads that do so at once may find names missing."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder. Raises CheckpointError if a text does not survive encoding and decoding."""
    with _LOADING, _quiet():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        tokenizer = _loaded(AutoTokenizer, folder)
        if not _matches_file(tokenizer, folder):
            tokenizer = _loaded(PreTrainedTokenizerFast, folder)
    for text in SAMPLES:
        decoded = tokenizer.decode(
            ids_of(tokenizer, text), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if decoded != text:
            raise CheckpointError(
                f"{folder}/tokenizer.json: {text!r} is decoded as {str(decoded)!r}: no text from it can be trusted; "
                f"use the original tokenizer files, or another model"
            )
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def is_loaded_wrongly(folder: Path) -> bool:
    """Whether AutoTokenizer, which other programs use, encodes or decodes differently from tokenizer.json."""
    with _LOADING, _quiet():
        from transformers import AutoTokenizer

        return not _matches_file(_loaded(AutoTokenizer, folder), folder)


def _matches_file(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return all(
        (ids := file.encode(text, add_special_tokens=False).ids) == ids_of(tokenizer, text)
        and file.decode(ids) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for text in SAMPLES
    )


def _loaded(kind: type, folder: Path) -> PreTrainedTokenizerBase:
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    try:
        return kind.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    except Exception as error:  # the library and its parser also raise bare Exceptions
        read_json(folder / "tokenizer.json")
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {first_line(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the library's warnings about tokenizer classes."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
