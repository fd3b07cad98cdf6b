"""A model on disk: validation, fingerprint, sizes, tokenizer and prompts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.prompts import BUNDLED_MODELS, NoThinking, Prompt
from models.checkpoints.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, holds_adapters, read_adapter_config
from models.checkpoints.files import CheckpointError, all_shapes, first_line, read_json, weight_files
from models.checkpoints.images import IMAGE_PROCESSOR_FILE, ImageProcessor, PromptImages, takes_images
from models.checkpoints.prompting import ChatPrompts, content_of
from models.checkpoints.token_texts import TokenReader
from models.checkpoints.tokenizer import SAMPLES, ids_of, load_tokenizer
from models.files import file_digest
from reasoning.cost import Shape
from reasoning.dialogue import TAGS
from reasoning.records import Problem
from reasoning.token_ids import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY_MODEL, TINY_VISION_MODEL = (Path(__file__).parent.parent / name for name in ("tiny", "tiny_vision"))
"""The bundled weights."""
IDENTITY = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Patterns of the files that are downloaded."""
NOT_LANGUAGE = re.compile(r"(^|\.)(visual|vision_tower|vision_model|multi_modal_projector|audio_tower)\.")
"""Tensors that process images or audio; text tokens do not pass through them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and the digest of everything that determines its samples."""

    folder: Path
    """Of the weights."""
    fingerprint: str
    prompt: Prompt = field(default=Prompt(), compare=False)
    """The run's prompt settings; not part of the fingerprint, since a server accepts any prompt."""
    adapter: Path | None = None
    """Folder of LoRA adapters on top of the weights in `folder`, as PEFT writes it."""
    base: Checkpoint | None = field(default=None, compare=False)
    """With adapters: the same model without them."""
    name: str = field(default="", compare=False)
    """Of the weights, as settings name them; empty for weights that a run has trained."""

    def with_adapter(self, adapter: Path) -> Checkpoint:
        """This model with these LoRA adapters alone. What is already loaded of it is shared; its weights are not read
        again. Raises CheckpointError."""
        config, plain = read_adapter_config(adapter), self.base or self
        # PEFT writes the names of the modules in another order in each process.
        identity = [config.r, config.scale, *sorted(config.target_modules)]
        digest = hashlib.sha256(f"{plain.fingerprint};{identity};".encode())
        digest.update(file_digest(adapter / ADAPTER_WEIGHTS).encode())
        made = replace(self, fingerprint=digest.hexdigest(), adapter=adapter, base=plain)
        made.__dict__.update({name: value for name, value in self.__dict__.items() if name not in made.__dict__})
        return made

    @property
    def path(self) -> Path:
        """The folder that it is opened by: of its adapters, or of its weights."""
        return self.adapter or self.folder

    @property
    def rank(self) -> int:
        """Of its adapters; 0 without."""
        return read_adapter_config(self.adapter).r if self.adapter else 0

    @property
    def weights_fingerprint(self) -> str:
        """Fingerprint of the weights in `folder`."""
        return self.base.fingerprint if self.base else self.fingerprint

    @classmethod
    def open(cls, folder: Path, numerics: str = "float32", prompt: Prompt | None = None) -> Checkpoint:
        """The model in `folder`, or that of the adapters in it. `numerics`: see `Engine.numerics`. Raises
        CheckpointError naming what is missing in `folder`."""
        if holds_adapters(folder):
            weights = weights_folder(folder)
            name = lasting_name(read_adapter_config(folder).base_model_name_or_path, weights)
            return replace(cls.open(weights, numerics, prompt), name=name).with_adapter(folder)
        digest = hashlib.sha256(numerics.encode())
        for path in _identifying_files(folder):
            digest.update(f"{path.name}:{file_digest(path)};".encode())
        return cls(folder, digest.hexdigest(), prompt or Prompt())

    @classmethod
    def without_fingerprint(cls, folder: Path) -> Checkpoint:
        """For its sizes alone, without adapters: no weights are read. Raises CheckpointError as `open` does."""
        weights = weights_folder(folder)
        _identifying_files(weights)
        return cls(weights, "")

    def check(self) -> None:
        """Tests tokenizer and chat template. Raises CheckpointError for what would otherwise fail hours later."""
        self._check_architecture()
        for text in SAMPLES:
            self.token_texts(self.encode(text))
        self.prompts.check()
        _ = self.end_ids
        for tag in self._tags:
            if tag not in self.decode(self.encode(f"a{tag}b")):
                raise CheckpointError(
                    f"{self.folder}/tokenizer.json: {tag!r} is lost in decoding; set other tags in prompt.thinking"
                )

    def _check_architecture(self) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        kind = read_json(self.folder / "config.json").get("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not self.takes_images:
            raise CheckpointError(
                f"{self.folder}/config.json: model_type {kind!r} is not a causal language model of transformers; use "
                f"a language model"
            )
        highest, rows = max(self.tokenizer.get_vocab().values()), self.vocabulary
        if highest >= rows:
            raise CheckpointError(
                f"{self.folder}: tokenizer.json has a token {highest}, but the embedding has only {rows} rows; use the "
                f"tokenizer that belongs to the weights"
            )

    @property
    def _tags(self) -> list[str]:
        thinking = self.prompt.thinking
        return [t for t in (thinking.open, thinking.close, thinking.answer_open, thinking.answer_close) if t]

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the language model, also where it is part of a multimodal model."""
        config = read_json(self.folder / "config.json")
        return config | config["text_config"] if isinstance(config.get("text_config"), dict) else config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @cached_property
    def prompts(self) -> ChatPrompts:
        return ChatPrompts(self.tokenizer, self.folder, self.prompt)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion, as in vLLM: the tokenizer's and those of generation_config.json. Raises
        CheckpointError if there is none."""
        path = self.folder / "generation_config.json"
        configured = (read_json(path) if path.is_file() else {}).get("eos_token_id")
        listed = configured if isinstance(configured, list) else [configured]
        found = {token for token in (*listed, self.tokenizer.eos_token_id) if isinstance(token, int)}
        if not found:
            raise CheckpointError(f"{self.folder}: no end token; set eos_token in tokenizer_config.json")
        return frozenset(found)

    @cached_property
    def end_id(self) -> int:
        """The end token for training data: the one with which the chat template ends a reply."""
        written = [token for token in self.encode(self.prompts.after_reply()) if token in self.end_ids]
        own = self.tokenizer.eos_token_id
        return written[0] if written else own if isinstance(own, int) else min(self.end_ids)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are not text: end tokens and role markers. Thinking tags are text."""
        text_tags, added = (*TAGS, *self._tags), self.tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        text = {index for index, token in added.items() if any(token.content in tag for tag in text_tags)}
        return frozenset(special - text) | self.end_ids

    @cached_property
    def tensor_sizes(self) -> dict[str, int]:
        """Number of elements of each tensor, from the safetensors headers."""
        return {name: math.prod(shape) for name, shape in all_shapes(self.folder).items()}

    @cached_property
    def shape(self) -> Shape:
        """Sizes for FLOP counts, from the safetensors headers. The output matrix counts once, tied or not."""
        sizes = {name: size for name, size in self.tensor_sizes.items() if not NOT_LANGUAGE.search(name)}
        untied = any(name.endswith("lm_head.weight") for name in sizes)
        embedding_only = (
            sum(size for name, size in sizes.items() if name.endswith("embed_tokens.weight")) if untied else 0
        )
        return Shape(
            parameters=sum(sizes.values()) - embedding_only,
            layers=self.number("num_hidden_layers"),
            attention_width=self.number("num_attention_heads") * self.head_size,
        )

    @property
    def head_size(self) -> int:
        if isinstance(self.config.get("head_dim"), int):
            return self.config["head_dim"]
        return self.number("hidden_size") // self.number("num_attention_heads")

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, padding included."""
        embeddings = [size for name, size in self.tensor_sizes.items() if name.endswith("embed_tokens.weight")]
        return embeddings[0] // self.number("hidden_size") if embeddings else self.number("vocab_size")

    def number(self, name: str) -> int:
        """A positive integer of config.json. Raises CheckpointError if it is missing."""
        found = self.config.get(name)
        if not isinstance(found, int) or found < 1:
            raise CheckpointError(
                f"{self.folder}/config.json: no {name}, nor in its text_config; only language models are supported"
            )
        return found

    def prompt_ids(self, problem: Problem) -> TokenIds:
        """The problem as rendered by the chat template, up to where the model starts to think. Raises CheckpointError
        for a problem with images if the model takes none."""
        content = content_of(problem, self.prompt)
        images = self.images_of(problem)
        key = json.dumps([content, images.digests if images else ()])
        if key not in self._prompts:
            token_ids = self.prompt_encoded(self.prompts.thinking(content))
            self._prompts[key] = self.image_processor.expanded(token_ids, problem.images) if images else token_ids
        return self._prompts[key]

    def images_of(self, problem: Problem) -> PromptImages | None:
        """The images of its prompt. Raises CheckpointError if the model takes none."""
        return PromptImages(problem.images, self.image_processor.token_id) if problem.images else None

    @property
    def takes_images(self) -> bool:
        return takes_images(read_json(self.folder / "config.json"))

    @cached_property
    def image_processor(self) -> ImageProcessor:
        """Raises CheckpointError if the model takes no images."""
        return ImageProcessor(self.folder)

    @cached_property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Tokens that may not be sampled."""
        return self.image_processor.forbidden_ids if self.takes_images else ()

    @cached_property
    def marks_thinking(self) -> bool:
        """Whether the model was made for the run's thinking tags: its template or its vocabulary has one."""
        tags = (self.prompt.thinking.open, self.prompt.thinking.close)
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        return any(tag in added or tag in str(self.tokenizer.chat_template) for tag in tags)

    def holds_placeholder(self, text: str) -> bool:
        """Whether `text` contains a token at which the model would look for an image."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.forbidden_ids))
        return any(token in text for token in tokens)

    def answering_directly(self) -> Checkpoint:
        """The same model, prompted without an opened thinking; its whole completion is the reply."""
        return replace(self, prompt=self.prompt.model_copy(update={"thinking": NoThinking()}))

    @cached_property
    def _prompts(self) -> dict[str, TokenIds]:
        """Cache: every prefix of every trace needs its problem's prompt."""
        return {}

    def prompt_encoded(self, text: str) -> TokenIds:
        """Token ids of a rendered prompt, with exactly one beginning-of-sequence token if the model was trained with
        one, whether or not the template writes it."""
        ids, begin = self.encode(text), self.tokenizer.bos_token_id
        body = TokenIds(dropwhile(lambda token: token == begin, ids))
        return TokenIds((begin, *body)) if isinstance(begin, int) and (self._adds_bos or len(body) < len(ids)) else ids

    @cached_property
    def _adds_bos(self) -> bool:
        return self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id

    def encode(self, text: str) -> TokenIds:
        return TokenIds(ids_of(self.tokenizer, text))

    def holds_control(self, text: str) -> bool:
        """Whether `text` contains a control token: a tag, a role marker, an end token."""
        return any(token in text for token in self._control_tokens)

    @cached_property
    def _control_tokens(self) -> list[str]:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return [*filter(str.strip, added), *self._tags]  # some vocabularies add runs of spaces

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, without special ones; spaces are kept."""
        text_ids = [token for token in token_ids if token not in self.special_ids]
        return str(self.tokenizer.decode(text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token_texts(self, token_ids: TokenIds) -> list[str]:
        """The text of each token: see `TokenReader.texts`. Raises Undecodable."""
        return self._reader.texts(token_ids)

    def texts_between(self, token_ids: TokenIds, ends: Sequence[int]) -> list[str]:
        """The texts between consecutive `ends`, which count tokens. Raises Undecodable.

        Decoded as parts of the whole, because some tokenizers decode a part alone differently.
        """
        texts = self.token_texts(token_ids)
        return ["".join(texts[start:end]) for start, end in pairwise(ends)]

    @cached_property
    def _reader(self) -> TokenReader:
        return TokenReader(self.tokenizer, self.decode)


def _identifying_files(folder: Path) -> list[Path]:
    """The files whose content makes the fingerprint. Raises CheckpointError for a missing or incomplete one."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; a model needs config.json, tokenizer.json, *.safetensors")
    names = [*IDENTITY, *([IMAGE_PROCESSOR_FILE] if takes_images(read_json(folder / "config.json")) else [])]
    files = [folder / name for name in names if (folder / name).is_file()]
    for path in files:
        if path.suffix == ".json":
            read_json(path)
    all_shapes(folder)
    return files + weight_files(folder)


def weights_folder(folder: Path) -> Path:
    """`folder`, or, if it holds adapters, that of the model that they belong to. Raises CheckpointError."""
    if not holds_adapters(folder):
        return folder
    name = read_adapter_config(folder).base_model_name_or_path
    found = found_checkpoint(name)
    if holds_adapters(found):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: {first_line(name)} holds adapters, too; name the model that they belong to"
        )
    return found


def lasting_name(name: str, folder: Path) -> str:
    """A model's name that means the same in another working directory. `folder`: where it was found."""
    return name if name in BUNDLED_MODELS or is_on_hub(name) else str(folder.resolve())


def is_on_hub(name: str) -> bool:
    """Whether a model's or data set's name, as in the settings, is to be looked up on the hub."""
    return (
        name not in BUNDLED_MODELS and not os.path.exists(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    )


def found_checkpoint(name: str, local_only: bool = False) -> Path:
    """Resolves a model name: a bundled model, a local folder, or a model on the hub, which is downloaded unless
    `local_only`.

    Raises CheckpointError if it is none of these.
    """
    from huggingface_hub import snapshot_download

    if name in BUNDLED_MODELS:
        return dict(zip(BUNDLED_MODELS, (TINY_MODEL, TINY_VISION_MODEL), strict=True))[name]
    if os.path.exists(name):  # unlike Path.exists, it accepts any string
        return Path(name).resolve()
    if not is_on_hub(name):
        raise CheckpointError(
            f"{first_line(name)}: no such folder; name one, a model on the hub (owner/name), or "
            f"{' or '.join(BUNDLED_MODELS)}"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=local_only))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model is unavailable
        raise CheckpointError(f"{name}: no such folder, and not available from the hub: {first_line(error)}") from None
