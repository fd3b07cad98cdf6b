"""A checkpoint's tokenizer, loaded so that it writes what its file says.

Knows: tokenizer.json, how transformers loads it. Must not know: prompts, templates, engines.

transformers puts the pre-tokenizer of the architecture's own class over the file's: with `LlamaTokenizerFast` on a
vocabulary of bytes (DeepSeek-R1-Distill-Llama) spaces vanish. The file is what the model was trained with.
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
"""Texts that must come back as they were."""
_LOADING = threading.Lock()
"""transformers looks its names up on first use, and two threads that do so at once may find them missing."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder. Raises CheckpointError where it does not give back the text it is given."""
    with _LOADING, _quiet():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        found = _loaded(AutoTokenizer, folder)
        if not _writes_as_its_file(found, folder):
            found = _loaded(PreTrainedTokenizerFast, folder)
    for text in SAMPLES:
        back = found.decode(ids_of(found, text), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back != text:
            raise CheckpointError(
                f"{folder}/tokenizer.json: {text!r} comes back as {str(back)!r}: nothing that it reads can be trusted; "
                f"take the makers' own tokenizer files, or another model"
            )
    return found


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def is_loaded_wrongly(folder: Path) -> bool:
    """Whether other programs, which load it by transformers' own choice, would read or write other texts."""
    with _LOADING, _quiet():
        from transformers import AutoTokenizer

        return not _writes_as_its_file(_loaded(AutoTokenizer, folder), folder)


def _writes_as_its_file(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
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
    except Exception as error:  # the library and the parser below it raise bare Exceptions, too
        read_json(folder / "tokenizer.json")
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {first_line(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on files that it takes for others."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
