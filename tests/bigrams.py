"""Shape models that speak: whole pipelines need traces that end, and some right answers.

What a model says next is looked up by the last token: the bigrams of a few written traces stand in its embedding and
its output matrix, all else is as random as before. So behaviour is scripted, and no figure of it says anything.
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

Said = tuple[str, str]
"""What a text stands after, of which the last token counts, and the text."""
CERTAIN = 24.0
"""By how much the logit of what may follow is above that of all other tokens."""
ANSWER = "2"
"""Of the problems that such a model is asked; it is what it answers half of the time."""
ANSWERS = (ANSWER, "3")
DOUBTS = ("Wait, maybe it differs.\n\n", "Hmm, that looks fine.\n\n", "Alternatively, use a formula.\n\n")
THOUGHTS = tuple(f"Okay, so we count.\n\n{''.join(order)}" for order in permutations(DOUBTS))
"""So one sentence in four is a thought's last."""
REPLY = "Therefore the number is two.\n</think>\n\n**Final Answer**\n\\boxed{{{}}}"


def traces(opened: str, ends: Sequence[str]) -> list[Said]:
    """What a model says by itself, each after what its prompts end with; `ends`: tokens that end a reply."""
    texts = [f"{thought}{REPLY.format(answer)}" for thought, answer in product(THOUGHTS, ANSWERS)]
    return [(opened, text + end) for text, end in zip(texts, cycle(ends), strict=False)]


def turns() -> list[Said]:
    """What either of two models says in a dialogue, each after the opening of its turn. Where both openings end in one
    token each also says what the other should."""
    long = [("<think>", f"{thought}Therefore the number is two.\n</think>") for thought in THOUGHTS]
    asking = [("<answer>", "Please do it again</rethink>")]
    answering = [("<answer>", f"The box holds\n**Final Answer**\n\\boxed{{{answer}}}</answer>") for answer in ANSWERS]
    return long + asking + answering


def teach(checkpoint: Path, said: Sequence[Said]) -> Path:
    """Has the shape model at `checkpoint`, whose matrices are not tied, say such texts."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    follow = Counter[tuple[int, int]]()
    for before, text in said:
        follow.update(pairwise([encode(before)[-1], *encode(text)]))
    totals = Counter[int]()
    for (token, _), count in follow.items():
        totals[token] += count
    place = {token: number for number, token in enumerate(totals)}
    assert len(place) <= HIDDEN
    weights = load_file(checkpoint / "model.safetensors")
    for token, number in place.items():
        weights["model.embed_tokens.weight"][token] = np.eye(HIDDEN, dtype=np.float32)[number]
    for (token, after), count in follow.items():
        # A normalised state is as long as the root of its size.
        logit = CERTAIN + math.log(count / totals[token])
        weights["lm_head.weight"][after, place[token]] = logit / math.sqrt(HIDDEN)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint
