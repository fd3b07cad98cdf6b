"""Shape models with scripted texts: whole pipelines need traces that end, and some right answers.

The bigrams of a few written traces are encoded in embedding and output matrix, so the next token depends on the last
one alone. All other weights stay random. Figures of such models say nothing about behaviour.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, pairwise, permutations, product
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.shapes import HIDDEN

ScriptedText = tuple[str, str]
"""A context, of which only the last token counts, and the text that follows it."""
CERTAIN = 24.0
"""Difference between the logits of tokens that may follow and of all others."""
ANSWER = "2"
"""The right answer of the test problems. Half of the scripted replies give it."""
ANSWERS = (ANSWER, "3")
DOUBTS = ("Wait, maybe it differs.\n\n", "Hmm, that looks fine.\n\n", "Alternatively, use a formula.\n\n")
THOUGHTS = tuple(f"Okay, so we count.\n\n{''.join(order)}" for order in permutations(DOUBTS))
"""All orders of the doubts, so that one sentence in four ends a thinking text."""
REPLY = "Therefore the number is two.\n</think>\n\n**Final Answer**\n\\boxed{{{}}}"


def traces(opened: str, ends: Sequence[str]) -> list[ScriptedText]:
    """Texts of a model that answers alone. `opened`: the end of its prompts; `ends`: its stop tokens, used in turn."""
    texts = [f"{thought}{REPLY.format(answer)}" for thought, answer in product(THOUGHTS, ANSWERS)]
    return [(opened, text + end) for text, end in zip(texts, cycle(ends), strict=False)]


def turns() -> list[ScriptedText]:
    """Turns of both models in a dialogue, each after the opening tag of its turn. In a tokenizer where both tags end in
    the same token, each model also writes the other's turns."""
    long = [("<think>", f"{thought}Therefore the number is two.\n</think>") for thought in THOUGHTS]
    asking = [("<answer>", "Please do it again</rethink>")]
    answering = [("<answer>", f"The box holds\n**Final Answer**\n\\boxed{{{answer}}}</answer>") for answer in ANSWERS]
    return long + asking + answering


def teach(checkpoint: Path, texts: Sequence[ScriptedText]) -> Path:
    """Writes the bigrams of `texts` into the shape model at `checkpoint`, whose embeddings must be untied."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    follow = Counter[tuple[int, int]]()
    for before, text in texts:
        follow.update(pairwise([encode(before)[-1], *encode(text)]))
    totals = Counter[int]()
    for (token, _), count in follow.items():
        totals[token] += count
    dimension = {token: number for number, token in enumerate(totals)}
    assert len(dimension) <= HIDDEN
    weights = load_file(checkpoint / "model.safetensors")
    for token, number in dimension.items():
        weights["model.embed_tokens.weight"][token] = np.eye(HIDDEN, dtype=np.float32)[number]
    for (token, after), count in follow.items():
        # The norm of a normalised hidden state is the square root of its size.
        logit = CERTAIN + math.log(count / totals[token])
        weights["lm_head.weight"][after, dimension[token]] = logit / math.sqrt(HIDDEN)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint
