"""DTO's own steps: probe, finalize, prune, pair (papers, section B).

Knows: which records each of `reasoning`'s rules wants. Must not know: the rules, or how an engine is asked.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from conf.dto import DtoFinalizing, DtoProbing, LlmPruning, Pairing
from conf.llm import Llm
from conf.probing import BinarySearch, Finalizing, Probing
from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.token_texts import Undecodable
from models.inference.engine import Failure, Refused
from models.inference.rollout_store import Purpose
from reasoning.dto import (
    first_wrong,
    last_failed_probe,
    preference_pairs,
    scan_of,
    shortest_right,
)
from reasoning.llm_queries import InvalidReply, with_token_limit
from reasoning.pruning import PruningPlan, pruned_trace
from reasoning.pruning_proposals import pruning_query
from reasoning.records import CrossingEstimate, OptimisedTrace, ProposedRemovals, Scan, SkippedRow, Trace, by_trace
from reasoning.sampling_plans import (
    BinarySearchPlan,
    CrossingSearch,
    EarliestCrossing,
    FullEstimate,
    count_right,
    min_successes,
)
from reasoning.segment import segment_text, token_ends
from reasoning.thinking import thinking_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import StepInputs, step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import (
    Finalizer,
    LogProbScorer,
    Prefix,
    PrefixQuery,
    PrefixSampler,
    TokenIds,
    answer_probe,
    query_prefixes,
    skipped_rows,
)
from tasks.steps.problems import by_id, prompts_of


@step
def probe_prefixes(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    segmentation: Segmentation,
    probing: DtoProbing,
    seed: int,
) -> ArtifactRef:
    """Rows of Scan: each trace's prefixes from the front until one passes. Traces cut by max_tokens are set aside."""
    checkpoint = ctx.resources.checkpoint(model)
    rows = ctx.artifacts.rows(traces, Trace)
    finished = [trace for trace in rows if not trace.truncated]
    ends, undecodable = all_segment_ends(ctx, checkpoint, finished, segmentation)
    whole = [trace for trace in finished if trace.id in ends]
    plans = {trace.id: search(len(ends[trace.id]), probing) for trace in whole}
    audits = {
        trace.id: EarliestCrossing(len(ends[trace.id]), probing.sampling.samples, probing.threshold)
        for trace in whole
        if audited(probing, trace, seed)
    }
    sampler = PrefixSampler(ctx.resources, checkpoint, by_id(ctx, problems), answer_probe(probing), seed)
    asked = [query_prefixes(t, ends[t.id], found[t.id]) for found in (plans, audits) for t in whole if t.id in found]
    sampler.run_queries("probe prefixes", Purpose.PROBE, asked)
    served = [trace for trace in whole if trace.id not in sampler.refused]
    results = [scan_of(trace, ends[trace.id], plans[trace.id]) for trace in served]
    dropped = Counter(truncated=len(rows) - len(finished))
    kept_audits = [trace.id for trace in served if trace.id in audits]
    differ = sum(audits[name].crossing != plans[name].crossing for name in kept_audits)
    counts = {"audited": len(kept_audits), "audits with another crossing": differ} if audits else {}
    return ctx.publish(
        "scans",
        results,
        rows_in=len(rows),
        dropped=dict(+dropped),
        usage=sampler.usage,
        cost_bounds=sampler.cost_bounds([(trace, ends[trace.id], plans[trace.id]) for trace in served]),
        counts=counts,
        skipped=undecodable + skipped_rows(sampler.refused),
    )


@step
def reestimate_crossings(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    scans: ArtifactRef,
    probing: Probing,
    seed: int,
) -> ArtifactRef:
    """Rows of Recheck: p at the crossing, estimated again on fresh samples.

    The first estimate is the one that was chosen for being high. A crossing that does not pass again was lucky.
    """
    trace_of = {trace.id: trace for trace in ctx.artifacts.rows(traces, Trace)}
    by_name = {scan.trace_id: scan for scan in ctx.artifacts.rows(scans, Scan) if scan.crossing is not None}
    # All probes, not only as many as decide: a share of those would not be an unbiased estimate.
    total = probing.sampling.samples
    plans = {name: FullEstimate(1, total) for name in by_name}
    asked = [query_prefixes(trace_of[name], [scan.cut], plans[name]) for name, scan in by_name.items()]
    sampler = PrefixSampler(
        ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), answer_probe(probing), seed
    )
    sampler.run_queries("probe again", Purpose.RECHECK, asked)
    rows = [
        CrossingEstimate(
            problem_id=scan.problem_id, sample=scan.sample, right=count_right(plans[name].outcomes[0]), total=total
        )
        for name, scan in by_name.items()
        if name not in sampler.refused
    ]
    counts = {
        "lucky crossings": sum(row.right < min_successes(total, probing.threshold) for row in rows),
        "fresh probes": sum(row.total for row in rows),
        "right of fresh probes": sum(row.right for row in rows),
    }
    return ctx.publish(
        "rechecks",
        rows,
        rows_in=len(by_name),
        usage=sampler.usage,
        counts=counts,
        skipped=skipped_rows(sampler.refused),
    )


@step
def finalize_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    scans: ArtifactRef,
    finalizing: DtoFinalizing,
    seed: int,
) -> ArtifactRef:
    """Rows of Optimised: traces cut at their crossing with the shortest correct ending."""
    trace_of = by_trace(ctx.artifacts.rows(traces, Trace))
    all_scans = ctx.artifacts.rows(scans, Scan)
    crossed = [scan for scan in all_scans if scan.crossing is not None]
    sources = [trace_of[scan.problem_id, scan.sample] for scan in crossed]
    prefixes = [cut(trace, scan.cut) for trace, scan in zip(sources, crossed, strict=True)]
    finalizer = Finalizer(ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), finalizing, seed)
    endings = finalizer.sample_endings("finalize", Purpose.FINALIZE, prefixes)
    premature = _premature_stops(finalizer, sources, crossed) if finalizing.premature_stop else {}
    rows, refused = list[OptimisedTrace](), dict[str, Refused]()
    dropped = Counter({"never-crosses": len(all_scans) - len(crossed)} if len(all_scans) > len(crossed) else {})
    for source, prefix, group in zip(sources, prefixes, endings, strict=True):
        if isinstance(group, Refused):
            refused[source.id] = group
            continue
        ending = shortest_right(group)
        if ending is None:
            dropped["no-right-ending"] += 1
            continue
        rows.append(
            OptimisedTrace(
                problem_id=source.problem_id,
                sample=source.sample,
                token_ids=prefix.token_ids + ending,
                premature_ids=premature.get((source.problem_id, source.sample)),
            )
        )
    return ctx.publish(
        "optimised",
        rows,
        rows_in=len(all_scans),
        dropped=dict(dropped),
        usage=finalizer.usage,
        skipped=skipped_rows(refused),
    )


def _premature_stops(
    finalizer: Finalizer, traces: Sequence[Trace], scans: Sequence[Scan]
) -> dict[tuple[str, int], TokenIds]:
    """Completions that stop at the last prefix that did not pass and answer wrong there, by (problem id, sample).
    Where there is no completion there is no such pair."""
    refused = [
        (trace, scan.ends[probe.segment])
        for trace, scan in zip(traces, scans, strict=True)
        if (probe := last_failed_probe(scan))
    ]
    prefixes = [cut(trace, end) for trace, end in refused]
    endings = finalizer.sample_endings("premature", Purpose.PREMATURE, prefixes, count=1)
    return {
        (trace.problem_id, trace.sample): prefix.token_ids + ending
        for (trace, _), prefix, group in zip(refused, prefixes, endings, strict=True)
        if not isinstance(group, Refused) and (ending := first_wrong(group))
    }


class PruningInputs(StepInputs):
    """Traces, where they were cut, and their finalized form."""

    model: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    scans: ArtifactRef
    optimised: ArtifactRef


@step
def propose_removals(
    ctx: StepContext,
    inputs: PruningInputs,
    pruning: LlmPruning,
    llm: Llm,
) -> ArtifactRef:
    """Rows of Proposed: what an auxiliary model would leave out of each row of Optimised with an inner segment. Raises
    what the model's client does, and TooManyUnusable."""
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    trace_of = by_trace(ctx.artifacts.rows(inputs.traces, Trace))
    scan_by_name = by_trace(ctx.artifacts.rows(inputs.scans, Scan))
    rows = ctx.artifacts.rows(inputs.optimised, OptimisedTrace)
    names = [name for row in rows if len(scan_by_name[name := (row.problem_id, row.sample)].kept_ends) > 2]
    asks = []
    for name in names:
        texts = parts_of(checkpoint, trace_of[name], (0, *scan_by_name[name].kept_ends))
        asks.append(pruning_query(known[name[0]].text, texts))
    asks = with_token_limit(asks, pruning.max_tokens, "pruning.max_tokens")
    found = query_llm(ctx, llm, "propose removals", asks, pruning.max_invalid_fraction)
    proposed = [
        ProposedRemovals(problem_id=name[0], sample=name[1], segments=tuple(sorted(set(reply.remove))))
        for name, reply in zip(names, found.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    dropped = found.unusable + Counter({"no-inner-segment": len(rows) - len(names)})
    return ctx.publish(
        "proposals",
        proposed,
        rows_in=len(rows),
        dropped=dict(+dropped),
        usage=found.usage,
        billed_to=found.billed_to,
    )


@step
def prune_traces(
    ctx: StepContext,
    inputs: PruningInputs,
    proposals: ArtifactRef | None,
    max_logprob_drop: float,
    probing: Probing,
    finalizing: Finalizing,
    seed: int,
) -> ArtifactRef:
    """Rows of Optimised without their redundant segments, confirmed by fresh endings; the others as they were, those
    among them for which an engine failed. Without `proposals` every inner segment is tried."""
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    trace_of = by_trace(ctx.artifacts.rows(inputs.traces, Trace))
    scan_by_name = by_trace(ctx.artifacts.rows(inputs.scans, Scan))
    rows = by_trace(ctx.artifacts.rows(inputs.optimised, OptimisedTrace))
    told = ctx.artifacts.rows(proposals, ProposedRemovals) if proposals else []
    proposed_of = {(row.problem_id, row.sample): row.segments for row in told}
    prunings = {
        name: PruningPlan(
            trace_of[name],
            scan_by_name[name].kept_ends,
            probing.sampling.samples,
            probing.threshold,
            proposed_of.get(name, ()) if proposals else None,
        )
        for name in rows
    }
    sampler = PrefixSampler(ctx.resources, checkpoint, known, answer_probe(probing), seed)
    asked = [PrefixQuery(item.trace, item, item.without, len(item.whole_prefix())) for item in prunings.values()]
    sampler.run_queries("prune segments", Purpose.PRUNE, asked)
    for item in prunings.values():
        if item.trace.id in sampler.refused:
            item.restore_all()
    proposed = sum(len(item.removed) for item in prunings.values())
    scorer = LogProbScorer(ctx.resources, checkpoint, known)
    unnatural = restore_unnatural(scorer, list(prunings.values()), max_logprob_drop)
    shortened = [name for name, item in prunings.items() if item.removed]
    finalizer = Finalizer(ctx.resources, checkpoint, known, finalizing, seed)
    prefixes = [Prefix(name[0], prunings[name].prefix()) for name in shortened]
    endings = finalizer.sample_endings("prune check", Purpose.PRUNE_CHECK, prefixes)
    results = dict(rows)
    checked = {name: group for name, group in zip(shortened, endings, strict=True) if not isinstance(group, Refused)}
    for name, group in checked.items():
        results[name] = pruned_trace(rows[name], prunings[name], group, probing.threshold)
    pruned = [row for row in results.values() if row.removed]
    failed = len(sampler.refused) + scorer.refused + len(shortened) - len(checked)
    counts = {
        "traces pruned": len(pruned),
        "not confirmed": len(checked) - len(pruned),
        "segments not needed": proposed,
        "unnatural without": unnatural,
        "segments removed": sum(len(row.removed) for row in pruned),
        "tokens before": sum(len(row.token_ids) for row in rows.values()),
        "tokens after": sum(len(row.token_ids) for row in results.values()),
    } | ({"left as they were, the engine failed": failed} if failed else {})
    return ctx.publish(
        "optimised",
        list(results.values()),
        rows_in=len(rows),
        usage=sampler.usage + scorer.usage + finalizer.usage,
        counts=counts,
    )


def restore_unnatural(scorer: LogProbScorer, prunings: Sequence[PruningPlan], most: float) -> int:
    """Puts segments back until what is kept of each trace is natural to the model; returns how many. All of them where
    the engine cannot tell."""
    doubtful = [item for item in prunings if item.removed]
    whole = scorer.log_probs("whole traces", [Prefix(item.trace.problem_id, item.whole_prefix()) for item in doubtful])
    pairs, restored = list[tuple[PruningPlan, list[float]]](), 0
    for item, before in zip(doubtful, whole, strict=True):
        if isinstance(before, Refused):
            item.restore_all()
        else:
            pairs.append((item, before))
    while pairs:
        kept = scorer.log_probs("pruned traces", [Prefix(item.trace.problem_id, item.prefix()) for item, _ in pairs])
        scored = [(item, before, after) for (item, before), after in zip(pairs, kept, strict=True)]
        pairs = []
        for item, before, after in scored:
            if isinstance(after, Refused):
                item.restore_all()
                continue
            unnatural = item.first_unnatural(before, after, most)
            if unnatural is not None:
                item.restore_before(unnatural)
                restored += 1
                pairs += [(item, before)] if item.removed else []
    return restored


@step
def build_pairs(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    optimised: ArtifactRef,
    pairing: Pairing,
    max_length: int,
) -> ArtifactRef:
    """Rows of Pair, in token ids."""
    prompts, rows = prompts_of(ctx, model, problems), ctx.artifacts.rows(optimised, OptimisedTrace)
    pairs, dropped = preference_pairs(prompts, ctx.artifacts.rows(traces, Trace), rows, pairing.rejected, max_length)
    return ctx.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped))


def search(prefixes: int, probing: DtoProbing) -> CrossingSearch:
    total, threshold = probing.sampling.samples, probing.threshold
    if isinstance(probing.search, BinarySearch):
        return BinarySearchPlan(prefixes, total, threshold)
    return EarliestCrossing(prefixes, total, threshold, probing.search.lookahead)


def audited(probing: DtoProbing, trace: Trace, seed: int) -> bool:
    """Whether a trace that is searched by halves is also scanned from the front: a share of them, always the same."""
    share = probing.search.audited if isinstance(probing.search, BinarySearch) else 0.0
    return random.Random(f"audit/{seed}/{trace.id}").random() < share


def cut(trace: Trace, end: int) -> Prefix:
    return Prefix(trace.problem_id, trace.token_ids[:end])


def all_segment_ends(
    ctx: RunContext, model: Checkpoint, traces: Sequence[Trace], segmentation: Segmentation
) -> tuple[dict[str, list[int]], list[SkippedRow]]:
    """Token ends of the segments of each trace's thinking. Returns and raises as `all_ends`."""

    def segments(trace: Trace) -> list[str]:
        thinking = thinking_of(trace.text, model.prompt.thinking)
        return segment_text(thinking, segmentation.markers, segmentation.min_chars, segmentation.max_chars)

    return all_ends(ctx, model, traces, segments)


def parts_of(model: Checkpoint, trace: Trace, ends: Sequence[int]) -> list[str]:
    """The texts between the tokens `ends` of a trace that was cut there. Not every tokenizer reads a part by itself as
    it reads it within the whole."""
    texts = model.token_texts(trace.token_ids)
    return ["".join(texts[start:end]) for start, end in pairwise(ends)]


def all_ends(
    ctx: RunContext, model: Checkpoint, traces: Sequence[Trace], parts: Callable[[Trace], list[str]]
) -> tuple[dict[str, list[int]], list[SkippedRow]]:
    """Token ends of the `parts` that each trace begins with, by trace id, and the traces whose tokens cannot be told
    apart. Raises TooManyFailed."""
    ends, aside, failures = (
        dict[str, list[int]](),
        list[SkippedRow](),
        ctx.resources.failures("read tokens", len(traces)),
    )
    for trace in traces:
        try:
            ends[trace.id] = token_ends(parts(trace), model.token_texts(trace.token_ids))
        except Undecodable as error:
            failures.add(Failure.UNDECODABLE, str(error))
            aside.append(SkippedRow(id=trace.id, reason=Failure.UNDECODABLE, detail=str(error)))
    return ends, aside
