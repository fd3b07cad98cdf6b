"""The steps of DTO: probe, finalize, prune, pair (arXiv 2505.21765). The rules are in `reasoning`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from conf.dto import DtoFinalizing, DtoProbing, LlmPruning, Pairing
from conf.llm import Llm
from conf.probing import BinarySearch, Finalizing, Probing
from conf.segmentation import Segmentation
from models.inference.engine import FailedRequest
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
from reasoning.records import CrossingEstimate, OptimisedTrace, ProposedRemovals, Scan, Trace, by_trace
from reasoning.sampling_plans import (
    BinarySearchPlan,
    CrossingSearch,
    ForwardScanPlan,
    FullEstimate,
    count_right,
    min_successes,
)
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import StepInputs, step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import (
    Endings,
    Finalizer,
    LogProbScorer,
    Prefix,
    PrefixQuery,
    PrefixSampler,
    answer_probe,
    query_prefixes,
    skipped_rows,
)
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.trace_segments import all_segment_ends, prefix_of, texts_between


@step("sampling")
def probe_prefixes(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    segmentation: Segmentation,
    probing: DtoProbing,
    seed: int,
) -> ArtifactRef:
    """Rows of Scan: the prefixes of each trace, probed until the crossing is found.

    Drops truncated traces. A share of the traces is audited: probed from the front in addition to a binary search.
    Raises TooManyFailed.
    """
    checkpoint = ctx.resources.checkpoint(model)
    rows = ctx.artifacts.rows(traces, Trace)
    finished = [trace for trace in rows if not trace.truncated]
    ends, undecodable = all_segment_ends(ctx, checkpoint, finished, segmentation)
    segmented = [trace for trace in finished if trace.id in ends]
    plans = {trace.id: search_plan(len(ends[trace.id]), probing) for trace in segmented}
    audits = {
        trace.id: ForwardScanPlan(len(ends[trace.id]), probing.sampling.samples, probing.threshold)
        for trace in segmented
        if is_audited(probing, trace, seed)
    }
    sampler = PrefixSampler(ctx.resources, checkpoint, by_id(ctx, problems), answer_probe(probing), seed)
    queries = [
        query_prefixes(trace, ends[trace.id], plan_of[trace.id])
        for plan_of in (plans, audits)
        for trace in segmented
        if trace.id in plan_of
    ]
    sampler.run_queries("probe prefixes", Purpose.PROBE, queries)
    succeeded = [trace for trace in segmented if trace.id not in sampler.failed]
    results = [scan_of(trace, ends[trace.id], plans[trace.id]) for trace in succeeded]
    dropped = Counter(truncated=len(rows) - len(finished))
    kept_audits = [trace.id for trace in succeeded if trace.id in audits]
    differ = sum(audits[name].crossing != plans[name].crossing for name in kept_audits)
    counts = {"audited": len(kept_audits), "audits with another crossing": differ} if audits else {}
    return ctx.publish(
        "scans",
        results,
        rows_in=len(rows),
        dropped=dict(+dropped),
        usage=sampler.usage,
        cost_bounds=sampler.cost_bounds([(trace, ends[trace.id], plans[trace.id]) for trace in succeeded]),
        counts=counts,
        skipped=undecodable + skipped_rows(sampler.failed),
    )


@step("sampling")
def reestimate_crossings(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    scans: ArtifactRef,
    probing: Probing,
    seed: int,
) -> ArtifactRef:
    """Rows of CrossingEstimate: p at each crossing, estimated on fresh samples. Reported, not used.

    The first estimate is biased upwards, because the crossing was selected for it. A crossing whose fresh estimate
    does not pass is counted as false. Raises TooManyFailed.
    """
    trace_of = {trace.id: trace for trace in ctx.artifacts.rows(traces, Trace)}
    crossed = {scan.trace_id: scan for scan in ctx.artifacts.rows(scans, Scan) if scan.crossing is not None}
    # A full estimate: a sequential test stops early, so its share is biased.
    total = probing.sampling.samples
    plans = {name: FullEstimate(1, total) for name in crossed}
    queries = [query_prefixes(trace_of[name], [scan.cut], plans[name]) for name, scan in crossed.items()]
    sampler = PrefixSampler(
        ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), answer_probe(probing), seed
    )
    sampler.run_queries("reestimate crossings", Purpose.REESTIMATE, queries)
    rows = [
        CrossingEstimate(
            problem_id=scan.problem_id, sample=scan.sample, right=count_right(plans[name].outcomes[0]), total=total
        )
        for name, scan in crossed.items()
        if name not in sampler.failed
    ]
    counts = {
        "false crossings": sum(row.right < min_successes(total, probing.threshold) for row in rows),
        "fresh probes": sum(row.total for row in rows),
        "right of fresh probes": sum(row.right for row in rows),
    }
    return ctx.publish(
        "crossing-estimates",
        rows,
        rows_in=len(crossed),
        usage=sampler.usage,
        counts=counts,
        skipped=skipped_rows(sampler.failed),
    )


@step("sampling")
def finalize_traces(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    scans: ArtifactRef,
    finalizing: DtoFinalizing,
    seed: int,
) -> ArtifactRef:
    """Rows of OptimisedTrace: traces cut at their crossing, with the shortest correct ending. Raises TooManyFailed."""
    trace_of = by_trace(ctx.artifacts.rows(traces, Trace))
    all_scans = ctx.artifacts.rows(scans, Scan)
    crossed = [scan for scan in all_scans if scan.crossing is not None]
    sources = [trace_of[scan.problem_id, scan.sample] for scan in crossed]
    prefixes = [prefix_of(trace, scan.cut) for trace, scan in zip(sources, crossed, strict=True)]
    finalizer = Finalizer(ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), finalizing, seed)
    endings = finalizer.sample_endings("finalize", Purpose.FINALIZE, prefixes)
    premature = _premature_stops(finalizer, sources, crossed) if finalizing.premature_stop else {}
    rows, failed = list[OptimisedTrace](), dict[str, FailedRequest]()
    dropped = Counter({"never-crosses": len(all_scans) - len(crossed)} if len(all_scans) > len(crossed) else {})
    for source, prefix, group in zip(sources, prefixes, endings, strict=True):
        if isinstance(group, FailedRequest):
            failed[source.id] = group
        elif (ending := shortest_right(group)) is None:
            dropped["no-right-ending"] += 1
        else:
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
        skipped=skipped_rows(failed),
    )


def _premature_stops(
    finalizer: Finalizer, traces: Sequence[Trace], scans: Sequence[Scan]
) -> dict[tuple[str, int], TokenIds]:
    """Completions cut at the last prefix that did not pass, with a wrong answer, by (problem id, sample).

    Absent: traces without a failing prefix before the crossing, traces whose ending is not wrong, failed requests.
    """
    failing = [
        (trace, scan.ends[probe.segment])
        for trace, scan in zip(traces, scans, strict=True)
        if (probe := last_failed_probe(scan))
    ]
    prefixes = [prefix_of(trace, end) for trace, end in failing]
    endings = finalizer.sample_endings("premature", Purpose.PREMATURE, prefixes, count=1)
    return {
        (trace.problem_id, trace.sample): prefix.token_ids + ending
        for (trace, _), prefix, group in zip(failing, prefixes, endings, strict=True)
        if not isinstance(group, FailedRequest) and (ending := first_wrong(group))
    }


class PruningInputs(StepInputs):
    """Traces, the scans that cut them, and the finalized traces."""

    model: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    scans: ArtifactRef
    finalized: ArtifactRef


@step("llm")
def propose_removals(ctx: StepContext, inputs: PruningInputs, pruning: LlmPruning, llm: Llm) -> ArtifactRef:
    """Rows of ProposedRemovals: segments that an auxiliary model would remove from each trace with an inner segment.

    Raises TooManyInvalidReplies, and what the client of `llm` raises.
    """
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    trace_of = by_trace(ctx.artifacts.rows(inputs.traces, Trace))
    ends_of = {name: scan.kept_ends for name, scan in _crossed_scans(ctx, inputs).items()}
    rows = ctx.artifacts.rows(inputs.finalized, OptimisedTrace)
    names = [name for row in rows if len(ends_of[name := (row.problem_id, row.sample)]) > 2]
    queries = [
        pruning_query(known[name[0]].text, texts_between(checkpoint, trace_of[name], (0, *ends_of[name])))
        for name in names
    ]
    queries = with_token_limit(queries, pruning.max_tokens, "pruning.max_tokens")
    answers = query_llm(ctx, llm, "propose removals", queries, pruning.max_invalid_fraction)
    proposals = [
        ProposedRemovals(problem_id=name[0], sample=name[1], segments=tuple(sorted(set(reply.remove))))
        for name, reply in zip(names, answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    dropped = answers.invalid + Counter({"no-inner-segment": len(rows) - len(names)})
    return ctx.publish(
        "proposals",
        proposals,
        rows_in=len(rows),
        dropped=dict(+dropped),
        usage=answers.usage,
        billed_to=answers.billed_to,
    )


@step("sampling")
def prune_traces(
    ctx: StepContext,
    inputs: PruningInputs,
    proposals: ArtifactRef | None,
    max_logprob_drop: float,
    probing: Probing,
    finalizing: Finalizing,
    seed: int,
) -> ArtifactRef:
    """Rows of OptimisedTrace, without redundant segments where fresh endings confirm the answer.

    The other rows are unchanged, also where an engine failed. Without `proposals` every inner segment is tried.
    Raises TooManyFailed.
    """
    checkpoint, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
    rows = by_trace(ctx.artifacts.rows(inputs.finalized, OptimisedTrace))
    prunings = _open_prunings(ctx, inputs, list(rows), proposals, probing)
    sampler = PrefixSampler(ctx.resources, checkpoint, known, answer_probe(probing), seed)
    queries = [PrefixQuery(item.trace, item, item.without, len(item.whole_prefix())) for item in prunings.values()]
    sampler.run_queries("prune segments", Purpose.PRUNE, queries)
    for item in prunings.values():
        if item.trace.id in sampler.failed:
            item.restore_all()
    not_needed = sum(len(item.removed) for item in prunings.values())
    scorer = LogProbScorer(ctx.resources, checkpoint, known)
    unnatural = restore_unnatural(scorer, list(prunings.values()), max_logprob_drop)
    finalizer = Finalizer(ctx.resources, checkpoint, known, finalizing, seed)
    shortened = [name for name, item in prunings.items() if item.removed]
    endings = _endings_of_pruned(finalizer, {name: prunings[name] for name in shortened})
    results = rows | {
        name: pruned_trace(rows[name], prunings[name], group, probing.threshold) for name, group in endings.items()
    }
    pruned = [row for row in results.values() if row.removed]
    unchanged = len(sampler.failed) + scorer.failed + len(shortened) - len(endings)
    counts = {
        "traces pruned": len(pruned),
        "not confirmed": len(endings) - len(pruned),
        "segments not needed": not_needed,
        "unnatural without": unnatural,
        "segments removed": sum(len(row.removed) for row in pruned),
        "tokens before": sum(len(row.token_ids) for row in rows.values()),
        "tokens after": sum(len(row.token_ids) for row in results.values()),
    } | ({"unchanged, the engine failed": unchanged} if unchanged else {})
    usage = sampler.usage + scorer.usage + finalizer.usage
    return ctx.publish("optimised", list(results.values()), rows_in=len(rows), usage=usage, counts=counts)


def _crossed_scans(ctx: RunContext, inputs: PruningInputs) -> dict[tuple[str, int], Scan]:
    return by_trace(scan for scan in ctx.artifacts.rows(inputs.scans, Scan) if scan.crossing is not None)


def _open_prunings(
    ctx: RunContext,
    inputs: PruningInputs,
    names: Sequence[tuple[str, int]],
    proposals: ArtifactRef | None,
    probing: Probing,
) -> dict[tuple[str, int], PruningPlan]:
    """One pruning for each trace, by (problem id, sample). A trace without a proposal has nothing to remove."""
    trace_of = by_trace(ctx.artifacts.rows(inputs.traces, Trace))
    scans = _crossed_scans(ctx, inputs)
    proposed = by_trace(ctx.artifacts.rows(proposals, ProposedRemovals)) if proposals else {}
    segments_of = {name: row.segments for name, row in proposed.items()}
    return {
        name: PruningPlan(
            trace_of[name],
            scans[name].kept_ends,
            probing.sampling.samples,
            probing.threshold,
            segments_of.get(name, ()) if proposals else None,
        )
        for name in names
    }


def _endings_of_pruned(
    finalizer: Finalizer, prunings: Mapping[tuple[str, int], PruningPlan]
) -> dict[tuple[str, int], Endings]:
    """Fresh endings of the pruned traces. Traces for which the engine failed are absent."""
    prefixes = [Prefix(name[0], item.prefix()) for name, item in prunings.items()]
    endings = finalizer.sample_endings("prune check", Purpose.PRUNE_CHECK, prefixes)
    return {name: group for name, group in zip(prunings, endings, strict=True) if not isinstance(group, FailedRequest)}


def restore_unnatural(scorer: LogProbScorer, prunings: Sequence[PruningPlan], max_logprob_drop: float) -> int:
    """Restores segments until every kept token is natural: its log-prob dropped by at most `max_logprob_drop` nats.

    Returns the number of restored segments. Where the engine cannot score a trace, all its segments are restored, and
    not counted.
    """
    changed = [item for item in prunings if item.removed]
    whole = scorer.log_probs("whole traces", [Prefix(item.trace.problem_id, item.whole_prefix()) for item in changed])
    open_items, restored = list[tuple[PruningPlan, list[float]]](), 0
    for item, before in zip(changed, whole, strict=True):
        if isinstance(before, FailedRequest):
            item.restore_all()
        else:
            open_items.append((item, before))
    while open_items:
        prefixes = [Prefix(item.trace.problem_id, item.prefix()) for item, _ in open_items]
        kept = scorer.log_probs("pruned traces", prefixes)
        scored = [(item, before, after) for (item, before), after in zip(open_items, kept, strict=True)]
        open_items = []
        for item, before, after in scored:
            if isinstance(after, FailedRequest):
                item.restore_all()
                continue
            unnatural = item.first_unnatural(before, after, max_logprob_drop)
            if unnatural is not None:
                item.restore_before(unnatural)
                restored += 1
                open_items += [(item, before)] if item.removed else []
    return restored


@step()
def build_pairs(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    optimised: ArtifactRef,
    pairing: Pairing,
    max_length: int,
) -> ArtifactRef:
    """Rows of Pair: an optimised trace is chosen, a longer original or a premature stop is rejected."""
    prompts, rows = prompts_of(ctx, model, problems), ctx.artifacts.rows(optimised, OptimisedTrace)
    pairs, dropped = preference_pairs(prompts, ctx.artifacts.rows(traces, Trace), rows, pairing.rejected, max_length)
    return ctx.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped))


def search_plan(prefixes: int, probing: DtoProbing) -> CrossingSearch:
    """The search for the crossing of a trace with so many prefixes."""
    total, threshold = probing.sampling.samples, probing.threshold
    if isinstance(probing.search, BinarySearch):
        return BinarySearchPlan(prefixes, total, threshold)
    return ForwardScanPlan(prefixes, total, threshold, probing.search.lookahead)


def is_audited(probing: DtoProbing, trace: Trace, seed: int) -> bool:
    """Whether a trace is scanned from the front in addition to a binary search. Depends on seed and trace id alone."""
    share = probing.search.audited if isinstance(probing.search, BinarySearch) else 0.0
    return random.Random(f"audit/{seed}/{trace.id}").random() < share
