"""Figures and text of the tiny model's card: does shortening matter for this model, and can it be learned?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reasoning.records import Problem, Scan, Trace, Verdict, by_trace
from reasoning.stories import SEEN_LEVELS

CONCLUSION = re.compile(r"^(?:That makes|It is|Now it is) (\d+)[^\n]*\n(\w+)?", re.MULTILINE)
"""A conclusion's value, and the first word after it."""
STOPPING = ("Therefore", "Now")
"""First words of the teacher's closing lines."""


def card_figures(
    problems: Sequence[Problem], traces: Sequence[Trace], scans: Sequence[Scan], ending_tokens: int
) -> dict[str, Any]:
    """All figures of the card, as fractions and tokens. `ending_tokens`: tokens needed to complete a cut trace."""
    level = {problem.id: problem.level or 0 for problem in problems}
    gold = {problem.id: problem.answer for problem in problems}
    seen = [trace for trace in traces if level[trace.problem_id] in SEEN_LEVELS]
    trace_of = by_trace(seen)
    scanned = [(trace_of[s.problem_id, s.sample], s) for s in scans if level[s.problem_id] in SEEN_LEVELS]
    kept = [_cut_length(trace, scan, ending_tokens) for trace, scan in scanned]
    return {
        "accuracy": _mean(_is_right(trace) for trace in seen),
        "accuracy_by_level": _by(traces, lambda trace: level[trace.problem_id], _is_right),
        "mean_tokens": _mean(len(trace.token_ids) for trace in seen),
        "tokens_by_level": _by(traces, lambda trace: level[trace.problem_id], lambda trace: len(trace.token_ids)),
        "truncated": _mean(trace.truncated for trace in seen),
        "mean_over_shortest_correct": _over_shortest(seen),
        "late_crossing_of_right_traces": _mean((scan.crossing or 0) > 0 for trace, scan in scanned if _is_right(trace)),
        "crossing_of_wrong_traces": _mean(scan.crossing is not None for t, scan in scanned if not _is_right(t)),
        "accuracy_of_first_conclusion": _mean(_first_is_right(trace, gold[trace.problem_id]) for trace in seen),
        "tokens_saved_by_own_crossing": 1 - sum(kept) / sum(len(trace.token_ids) for trace, _ in scanned),
        "accuracy_when_cut_at_own_crossing": _mean(_right_when_cut(trace, scan) for trace, scan in scanned),
        **_continuation_rates(seen, gold),
        "segments": _mean(len(scan.ends) for _, scan in scanned),
        "problems": len(problems),
        "samples": len(traces),
        "probed": len(scans),
    }


def _is_right(trace: Trace) -> bool:
    return trace.verdict is Verdict.RIGHT


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _by(traces: Sequence[Trace], group: Callable[[Trace], int], value: Callable[[Trace], float]) -> dict[int, float]:
    groups: dict[int, list[float]] = defaultdict(list)
    for trace in traces:
        groups[group(trace)].append(value(trace))
    return {name: _mean(values) for name, values in sorted(groups.items())}


def _over_shortest(traces: Sequence[Trace]) -> float | None:
    """Mean tokens of all samples ÷ mean tokens of each problem's shortest correct one. None if none is correct."""
    of_problem: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        of_problem[trace.problem_id].append(trace)
    solved = [group for group in of_problem.values() if any(map(_is_right, group))]
    if not solved:
        return None
    shortest = [min(len(trace.token_ids) for trace in group if _is_right(trace)) for group in solved]
    return _mean(_mean(len(trace.token_ids) for trace in group) for group in solved) / _mean(shortest)


def _cut_length(trace: Trace, scan: Scan, ending_tokens: int) -> int:
    """Tokens of the trace when cut at its crossing and completed; its full length if it never crosses."""
    if scan.crossing is None:
        return len(trace.token_ids)
    return min(len(trace.token_ids), scan.cut + ending_tokens)


def _right_when_cut(trace: Trace, scan: Scan) -> float:
    """Fraction of correct probes at the crossing (which was selected with ground truth), or the whole trace's verdict
    if it never crosses."""
    return float(_is_right(trace)) if scan.crossing is None else _share_at_crossing(scan)


def _share_at_crossing(scan: Scan) -> float:
    return next(probe.right / probe.total for probe in scan.probes if probe.segment == scan.crossing)


def _first_is_right(trace: Trace, gold: str) -> bool:
    first = CONCLUSION.search(trace.text)
    return first is not None and first[1] == gold


def _continuation_rates(traces: Sequence[Trace], gold: Mapping[str, str]) -> dict[str, float]:
    """How often the model re-checks after a correct and after a wrong conclusion."""
    going: dict[bool, list[bool]] = {True: [], False: []}
    for trace in traces:
        for match in CONCLUSION.finditer(trace.text):
            going[match[1] == gold[trace.problem_id]].append(match[2] not in STOPPING)
    return {"goes_on_after_right": _mean(going[True]), "goes_on_after_wrong": _mean(going[False])}


CARD = """# Model card: the bundled tiny model

A Qwen2-architecture language model of about {parameters:,} parameters that solves multi-step arithmetic *stories* and over-thinks
them. It exists so that every pipeline of this project can run for real, with the real vLLM, TRL and Prefect, on a
laptop without a GPU or a download. It is good for nothing else.

- **Made by** `make tiny-model` (`flows/tiny_model.py`), from nothing but seeds; settings and figures in `figures.json`.
- **Trained on** traces of a scripted teacher (`reasoning/stories.py`) over stories of 1–8 steps: long thinking with concentrated
  mistakes (dropped carries, forgotten borrows), question marks where it half-knows, re-checks that repair and re-checks
  that waste, right answers talked into wrong ones.
- **Tokenizer contract**: byte-level BPE under Qwen2's own pre-tokenizer (each digit is a token), context {context:,}, one token each for
  `<think> </think> <answer> </answer> <rethink> </rethink>` and the role and turn markers. Changing either voids all figures.
- **Weights**: bfloat16 safetensors, tied embeddings.

## What its world is like

Sampled at T 0.6, top_p 0.95: {problems} held-out stories (levels 1–10), {samples:,} samples; {probed:,} traces probed, prefix by prefix, up to
their crossing (8 probes, T = ½). Levels 9 and 10 were never seen in training and are left out of all figures but the table's.

"""
VISION_CARD = """# Model card: the bundled tiny vision-language model

A Qwen2.5-VL of about {parameters:,} parameters in its language model, and {vision_parameters:,} in its vision tower. It reads quantities off
*boards* of coloured boxes, calculates with them in steps, and over-thinks. It exists so that CoT distillation with images can run for
real on a laptop. It is good for nothing else.

- **Made by** `make tiny-vision-model` (`flows/tiny_vision_model.py`), from nothing but seeds; settings and figures in `figures.json`.
- **Trained on** boards (`reasoning/boards.py`): first the vision tower alone, to tell colours and quantities, with two heads that are
  thrown away; then reading all boxes; then short calculations; then traces of the teacher that over-thinks stories, too.
- **Tokenizer contract**: as the tiny language model's, and the tokens of the Qwen2-VL family that mark images. A board of 84 × 56 pixels
  is six image tokens, one for each box.
- **Weights**: bfloat16 safetensors, tied embeddings.

## What its world is like

Sampled at T 0.6, top_p 0.95: {problems} held-out boards (levels 1–7), {samples:,} samples; {probed:,} traces probed, prefix by prefix, up to
their crossing (8 probes, T = ½). **With the picture of another board, {blind_accuracy:.1%} are right**: the model looks.

"""
FIGURES = """| figure{seen} | value | target |
|---|---|---|
| accuracy | {accuracy:.1%} | 60–90 % |
| mean tokens | {mean_tokens:.0f} | |
| mean tokens ÷ the shortest correct of a problem's | {mean_over_shortest_correct:.2f} | ≥ 2 |
| right traces whose earliest crossing lies after the first segment | {late_crossing_of_right_traces:.1%} | ≥ 25 % |
| wrong traces that cross somewhere | {crossing_of_wrong_traces:.1%} | ≥ 10 % |
| accuracy when every trace stops at its first conclusion | {accuracy_of_first_conclusion:.1%} | ≥ 5 points below accuracy |
| tokens saved when each trace stops at its own earliest crossing | {tokens_saved_by_own_crossing:.1%} | ≥ 45 % |
| accuracy then | {accuracy_when_cut_at_own_crossing:.1%} | |
| goes on thinking after a right conclusion | {goes_on_after_right:.1%} | |
| goes on thinking after a wrong conclusion | {goes_on_after_wrong:.1%} | more than after a right one |
| segments per trace | {segments:.1f} | |
| truncated | {truncated:.2%} | |

| level | {levels} |
|---|{rule}
| accuracy % | {level_accuracies} |
| tokens | {level_tokens} |
"""


def card_text(figures: Mapping[str, Any], parameters: int, context: int) -> str:
    """The language model's card in Markdown."""
    return CARD.format(**figures, parameters=parameters, context=context) + _figures_text(figures, " (levels 1–8)")


def vision_card_text(figures: Mapping[str, Any], parameters: int, context: int) -> str:
    """The vision-language model's card in Markdown."""
    return VISION_CARD.format(**figures, parameters=parameters, context=context) + _figures_text(figures, "")


def _figures_text(figures: Mapping[str, Any], seen: str) -> str:
    accuracies, tokens = figures["accuracy_by_level"], figures["tokens_by_level"]
    return FIGURES.format(
        **figures,
        seen=seen,
        levels=" | ".join(str(level) for level in accuracies),
        rule="---|" * len(accuracies),
        level_accuracies=" | ".join(f"{100 * value:.0f}" for value in accuracies.values()),
        level_tokens=" | ".join(f"{value:.0f}" for value in tokens.values()),
    )
