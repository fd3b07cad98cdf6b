"""DTO: where to cut a trace, how to complete it, which pairs to build (arXiv 2505.21765).

Deviations from the paper:

- Premature-stop pairs are ours. Rejected side, threshold, sample counts and closing text are settings, because the
  paper leaves them open.
- Prefixes after the first passing one are not probed, because the earliest crossing does not depend on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from reasoning.pairs import fit_pairs
from reasoning.records import OptimisedTrace, Pair, PairKind, Probe, Scan, Trace, Verdict, by_trace
from reasoning.sampling_plans import CrossingSearch, count_right
from reasoning.token_ids import TokenIds


def scan_of(trace: Trace, ends: Sequence[int], plan: CrossingSearch) -> Scan:
    """Result of a finished search over the prefixes of `trace`. `ends`: length of each prefix in tokens."""
    return Scan(
        problem_id=trace.problem_id,
        sample=trace.sample,
        ends=tuple(ends),
        crossing=plan.crossing,
        probes=tuple(
            Probe(segment=index, right=count_right(test.outcomes), total=len(test.outcomes))
            for index, test in plan.tested.items()
        ),
    )


def shortest_right(endings: Iterable[tuple[TokenIds, Verdict]]) -> TokenIds | None:
    """Shortest correct completion, the first if several are equally short. None if none is correct."""
    return min((ids for ids, verdict in endings if verdict is Verdict.RIGHT), key=len, default=None)


def first_wrong(endings: Iterable[tuple[TokenIds, Verdict]]) -> TokenIds | None:
    """First completion with a wrong answer. Completions without an answer or with a timed-out check do not count."""
    return next((ids for ids, verdict in endings if verdict is Verdict.WRONG), None)


def last_failed_probe(scan: Scan) -> Probe | None:
    """Last prefix before the crossing that did not pass: stopping there would have been premature. None if the trace
    never crosses, or at once."""
    if scan.crossing is None:
        return None
    return next((probe for probe in reversed(scan.probes) if probe.segment < scan.crossing), None)


def preference_pairs(
    prompts: dict[str, TokenIds],
    traces: Sequence[Trace],
    optimised: Sequence[OptimisedTrace],
    rejected: str,
    max_length: int,
) -> tuple[list[Pair], Counter[str]]:
    """Preference pairs in token ids, and the number of dropped pairs by reason.

    `prompts`: token ids by problem id. `rejected`: "original" or "longest". `max_length`: limit of prompt + completion
    in tokens.
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
    prompts: dict[str, TokenIds], traces: Sequence[Trace], max_length: int
) -> tuple[list[Pair], Counter[str]]:
    """Pairs of the control `shortest-longest`: each problem's shortest correct trace against its longest one, in token
    ids. Truncated traces are excluded. Also returns the number of dropped pairs by reason."""
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
    """Longest trace of each problem, the first if several are equally long."""
    longest: dict[str, Trace] = {}
    for trace in traces:
        if trace.problem_id not in longest or len(trace.token_ids) > len(longest[trace.problem_id].token_ids):
            longest[trace.problem_id] = trace
    return longest
