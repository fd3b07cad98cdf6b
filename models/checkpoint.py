"""A model on disk: is it whole, what is it, how large is it, how does it write.

Knows: checkpoint folders (safetensors, config, tokenizer). Must not know: engines, trainers, pipelines.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import ReadableError
from models.token_texts import TokenReader
from reasoning.cost import Shape
from reasoning.records import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY_MODEL = Path(__file__).parent / "tiny"
"""The bundled weights."""
IDENTITY = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Fields of a config by which a model changes its logits after the output head (Gemma 2, Granite, Cohere)."""


class CheckpointError(ReadableError):
    """A checkpoint that cannot be used, with what is missing."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and the digest of all that decides what it samples."""

    folder: Path
    fingerprint: str

    @classmethod
    def open(cls, folder: Path, dtype: str = "float32") -> Checkpoint:
        """`dtype`: the arithmetic it is sampled in. Raises CheckpointError naming what `folder` lacks."""
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: no {name}; a model needs config.json, tokenizer.json, *.safetensors")
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise CheckpointError(f"{folder}: no *.safetensors weights (other formats are not loaded)")
        index = folder / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
        if missing := sorted(shards - {path.name for path in weights}):
            raise CheckpointError(f"{folder}: the index names weights that are not there: {', '.join(missing)}")
        digest = hashlib.sha256(dtype.encode())
        for path in [folder / name for name in IDENTITY if (folder / name).is_file()] + weights:
            digest.update(f"{path.name}:{_file_digest(path)};".encode())
        return cls(folder, digest.hexdigest())

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @property
    def end_id(self) -> int:
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return end

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text: ends, and what a chat template marks roles with."""
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def tensor_sizes(self) -> dict[str, int]:
        """Number of elements of every tensor, from the weights' headers."""
        return {name: size for path in self.folder.glob("*.safetensors") for name, size in tensor_sizes(path).items()}

    @cached_property
    def shape(self) -> Shape:
        """Read from the weights' headers, nothing is loaded. Tied or not, the output matrix multiplies once."""
        sizes = self.tensor_sizes
        untied = "lm_head.weight" in sizes
        looked_up = sizes.get("model.embed_tokens.weight", 0) if untied else 0
        heads = self.config["num_attention_heads"]
        head_size = self.config.get("head_dim") or self.config["hidden_size"] // heads
        return Shape(
            parameters=sum(sizes.values()) - looked_up,
            layers=self.config["num_hidden_layers"], attention_width=heads * head_size,
        )  # fmt: skip

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """The problem as the model's chat template renders it, up to where the model begins to think."""
        if problem.text not in self._prompts:
            message = [{"role": "user", "content": problem.text}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            self._prompts[problem.text] = self.encode(str(text))
        return self._prompts[problem.text]

    @cached_property
    def _prompts(self) -> dict[str, tuple[int, ...]]:
        """Rendered once: every prefix of every trace asks for its problem's prompt."""
        return {}

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def holds_control(self, text: str) -> bool:
        """Whether the tokenizer would read some of it as more than text: a tag, a role, an end."""
        return any(token in text for token in self._controls)

    @cached_property
    def _controls(self) -> list[str]:
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text without special tokens, spaces untouched."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_texts(self, token_ids: tuple[int, ...]) -> list[str]:
        """The text of each token: see `TokenReader.texts`. Raises Undecodable."""
        return self._reader.texts(token_ids)

    @cached_property
    def _reader(self) -> TokenReader:
        return TokenReader(self.tokenizer, self.decode)


def refuse_changed_logits(model: Checkpoint) -> None:
    """Raises CheckpointError for a model that SimPO's memory-safe loss cannot train, before anything is sampled."""
    found = {name: model.config[name] for name in CHANGES_LOGITS if model.config.get(name) not in (None, 1)}
    if found:
        raise CheckpointError(
            f"{model.folder}/config.json: {', '.join(f'{name} = {value}' for name, value in found.items())}: this "
            f"model changes its logits after the output head, which the memory-safe SimPO loss does not know; take "
            f"another model"
        )


def found_checkpoint(name: str) -> Path:
    """The bundled model where `name` is `tiny`, the local folder `name`, or a local copy of the hub's model.

    Raises CheckpointError when it is neither.
    """
    from huggingface_hub import snapshot_download

    if name == "tiny":
        return TINY_MODEL
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Path(name).resolve()
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model is not to be had
        raise CheckpointError(f"{name}: no such folder, and not to be had from the hub: {error}") from None


def tensor_sizes(path: Path) -> dict[str, int]:
    """Number of elements of every tensor in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            sizes[name] = 1
            for extent in entry["shape"]:
                sizes[name] *= extent
    return sizes


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
