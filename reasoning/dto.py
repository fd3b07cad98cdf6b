"""DTO: where to cut a trace, how to end it, what to prefer (arXiv 2505.21765; papers, section B).

Knows: records, token ids, the paper's rules. Must not know: engines, stores, tokenizers' insides.

Deviations from the paper. Settings: premature-stop negatives (ours); the rejected side of a pair, the threshold, the
counts of rollouts and the closing text (the paper leaves them open). Not a setting: prefixes after the first that
passes are not probed, because the earliest crossing does not depend on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from reasoning.pairs import fit_pairs
from reasoning.records import OptimisedTrace, Pair, PairKind, Probe, Scan, Trace, Verdict, by_trace
from reasoning.sampling_plans import CrossingSearch, count_right


def scan_of(trace: Trace, ends: Sequence[int], plan: CrossingSearch) -> Scan:
    """What a closed plan found out about the prefixes of `trace`, which end at the tokens `ends`."""
    return Scan(
        problem_id=trace.problem_id,
        sample=trace.sample,
        ends=tuple(ends),
        crossing=plan.crossing,
        probes=tuple(
            Probe(segment=index, right=count_right(trial.outcomes), total=len(trial.outcomes))
            for index, trial in plan.tested.items()
        ),
    )


def shortest_right(endings: Iterable[tuple[tuple[int, ...], Verdict]]) -> tuple[int, ...] | None:
    """The shortest right ending (the first of several equally short); None when none is right."""
    return min((ids for ids, verdict in endings if verdict is Verdict.RIGHT), key=len, default=None)


def first_wrong(endings: Iterable[tuple[tuple[int, ...], Verdict]]) -> tuple[int, ...] | None:
    """The first ending that answers wrong; one without an answer, or not verified in time, is no example of that."""
    return next((ids for ids, verdict in endings if verdict is Verdict.WRONG), None)


def last_refused(scan: Scan) -> Probe | None:
    """The last prefix before the crossing that did not pass: where stopping would have been premature."""
    if scan.crossing is None:
        return None
    return next((probe for probe in reversed(scan.probes) if probe.segment < scan.crossing), None)


def preference_pairs(
    prompts: dict[str, tuple[int, ...]],
    traces: Sequence[Trace],
    optimised: Sequence[OptimisedTrace],
    rejected: str,
    max_length: int,
) -> tuple[list[Pair], Counter[str]]:
    """Pairs in token ids (section B.7) and what was dropped, counted by reason.

    `prompts` by problem id; `rejected` is "original" or "longest"; `max_length` counts prompt + completion.
    """
    originals = by_trace(traces)
    longest = _longest_traces(traces)
    pairs: list[Pair] = []
    for row in optimised:
        original = longest[row.problem_id] if rejected == "longest" else originals[row.problem_id, row.sample]
        candidates = [(PairKind.OPTIMISED, original.token_ids)]
        if row.premature_ids is not None:
            candidates.append((PairKind.PREMATURE_STOP, row.premature_ids))
        pairs += [
            Pair(
                problem_id=row.problem_id,
                sample=row.sample,
                kind=kind,
                prompt_ids=prompts[row.problem_id],
                chosen_ids=row.token_ids,
                rejected_ids=rejected_ids,
            )
            for kind, rejected_ids in candidates
        ]
    return fit_pairs(pairs, max_length)


def shortest_longest_pairs(
    prompts: dict[str, tuple[int, ...]], traces: Sequence[Trace], max_length: int
) -> tuple[list[Pair], Counter[str]]:
    """A control: for each problem its shortest right trace against its longest one, in token ids. Traces that were
    cut are neither."""
    traces = [trace for trace in traces if not trace.truncated]
    longest = _longest_traces(traces)
    shortest: dict[str, Trace] = {}
    for trace in traces:
        best = shortest.get(trace.problem_id)
        if trace.verdict is Verdict.RIGHT and (best is None or len(trace.token_ids) < len(best.token_ids)):
            shortest[trace.problem_id] = trace
    pairs = [
        Pair(
            problem_id=name,
            sample=trace.sample,
            kind=PairKind.SHORTEST_LONGEST,
            prompt_ids=prompts[name],
            chosen_ids=trace.token_ids,
            rejected_ids=longest[name].token_ids,
        )
        for name, trace in shortest.items()
    ]
    kept, dropped = fit_pairs(pairs, max_length)
    return kept, dropped + Counter({"never-right": len(longest) - len(shortest)})


def _longest_traces(traces: Sequence[Trace]) -> dict[str, Trace]:
    """Each problem's longest trace, the first of several equally long."""
    longest: dict[str, Trace] = {}
    for trace in traces:
        if trace.problem_id not in longest or len(trace.token_ids) > len(longest[trace.problem_id].token_ids):
            longest[trace.problem_id] = trace
    return longest
