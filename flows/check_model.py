"""`check-model`: prints how a run would use a model (prompt, tags, stop tokens, sizes, memory) without starting it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conf.engine import Engine
from conf.training import Training
from models.checkpoints.checkpoint import Checkpoint, found_checkpoint
from models.checkpoints.files import printable
from models.checkpoints.memory_estimates import Need, serving, training
from models.checkpoints.prompting import SAMPLE
from models.checkpoints.tokenizer import is_loaded_wrongly


def check_model(settings: Any) -> None:
    """Prints the findings for `settings.model`. Raises CheckpointError for a model that cannot be used."""
    model = Checkpoint.open(found_checkpoint(settings.model), settings.engine.numerics, settings.prompt)
    model.check()
    for title, lines in (
        ("model", _sizes(model)),
        ("prompt", _prompt(model)),
        ("thinking", _thinking(model)),
        ("stop tokens", _stop_tokens(model)),
        ("memory (estimates)", _memory(model, settings)),
        ("warnings", _warnings(model, settings.engine)),
    ):
        print(f"\n{title}")
        for line in list(lines) or ["none"]:
            print(f"  {printable(line)}")


IMAGE_SIZES = ((336, 224), (1024, 768))
"""Pixels."""


def _sizes(model: Checkpoint) -> Iterator[str]:
    yield f"folder       {model.folder}"
    if model.adapter:
        yield f"adapters     {model.adapter}, rank {model.rank}"
    yield f"fingerprint  {model.fingerprint}"
    yield f"architecture {model.config.get('model_type')}, {model.number('num_hidden_layers')} layers"
    yield f"parameters   {sum(model.tensor_sizes.values()):,}"
    yield f"vocabulary   {model.vocabulary:,} rows, {len(model.tokenizer):,} tokens"
    yield f"context      {model.config.get('max_position_embeddings', 'unknown')} tokens"


def _prompt(model: Checkpoint) -> Iterator[str]:
    ids = model.prompt_ids(SAMPLE)
    for line in str(model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).splitlines(keepends=True):
        yield repr(line)[1:-1]
    yield f"({len(ids)} tokens; control characters are escaped)"
    if model.takes_images:
        for width, height in IMAGE_SIZES:
            tokens = model.image_processor.tokens_of_size(width, height)
            yield f"an image of {width:,} × {height:,} pixels is {tokens:,} tokens"
    if model.prompts.arguments:
        yield f"arguments of the template: {', '.join(sorted(model.prompts.arguments))}"


def _thinking(model: Checkpoint) -> Iterator[str]:
    thinking = model.prompt.thinking
    for name in ("open", "close", "answer_open", "answer_close"):
        if tag := getattr(thinking, name):
            ids = model.encode(tag)
            yield f"{name:12} {tag!r}: {len(ids)} token{'s' * (len(ids) > 1)} {list(ids)}"
    yield f"opened by    {'the chat template' if model.prompts.opens_thinking else 'this suite, after the template'}"


def _stop_tokens(model: Checkpoint) -> Iterator[str]:
    for token in sorted(model.end_ids):
        kind = "  (appended to training rows)" if token == model.end_id else ""
        yield f"{token:>6} {model.tokenizer.convert_ids_to_tokens(token)!r}{kind}"
    if model.tokenizer.bos_token is not None:
        count = model.prompt_ids(SAMPLE).count(model.tokenizer.bos_token_id)
        yield f"{model.tokenizer.bos_token!r} is the BOS token: {count} in the prompt"


def _memory(model: Checkpoint, settings: Any) -> Iterator[str]:
    yield from map(_need, serving(model, settings.engine))
    sections = {name: getattr(settings, name, None) for name in ("training", "sft", "dpo")}
    for name, section in sections.items():
        if isinstance(section, Training):
            yield f"training with [{name}]:"
            yield from map(_need, training(model, section))


def _need(need: Need) -> str:
    unit, size = ("GB", need.bytes / 1e9) if need.bytes >= 1e8 else ("MB", need.bytes / 1e6)
    return f"{size:>9,.3g} {unit}  {need.what}  = {need.formula}"


def _warnings(model: Checkpoint, engine: Engine) -> Iterator[str]:
    limit = model.config.get("max_position_embeddings")
    if isinstance(limit, int) and engine.max_model_len > limit:
        yield f"engine.max_model_len ({engine.max_model_len}) is over config.json's max_position_embeddings ({limit})"
    if not (model.folder / "generation_config.json").is_file():
        yield "no generation_config.json: completions stop at the tokenizer's EOS token only"
    if is_loaded_wrongly(model.folder):
        yield (
            "transformers' AutoTokenizer encodes or decodes differently from tokenizer.json: a run loads the latter, "
            "and remote servers must do the same (--tokenizer)"
        )
    if unread := model.prompts.unread:
        yield f"prompt.template_arguments: the template does not read {', '.join(unread)}"
