"""The steps of DTO: probe, finalize, prune, pair (arXiv 2505.21765). The rules are in `reasoning`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import groupby

from conf.dto import DtoFinalizing, DtoProbing, Pairing
from conf.probing import BinarySearch, Probing
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
from reasoning.records import CostBounds, CrossingEstimate, OptimisedTrace, Scan, Trace, left_joined, trace_name
from reasoning.sampling_plans import (
    BinarySearchPlan,
    CrossingSearch,
    ForwardScanPlan,
    FullEstimate,
    count_right,
    min_successes,
)
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.live_traces import scanned_trace
from tasks.runtime.rows import RowFile
from tasks.steps.prefix_sampling import (
    Finalizer,
    PrefixQuery,
    PrefixSampler,
    answer_probe,
    query_prefixes,
    skipped_rows,
)
from tasks.steps.problems import by_id, prompts_of
from tasks.steps.trace_segments import prefix_of, segment_aligner


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
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    aligner = segment_aligner(ctx, checkpoint, traces.rows, segmentation)
    sampler = PrefixSampler(ctx.resources, checkpoint, known, answer_probe(probing), seed)
    dropped, counts, bounds = Counter[str](), Counter[str](), CostBounds()

    def queries() -> Iterator[PrefixQuery]:
        for trace in ctx.artifacts.stream(traces, Trace):
            if trace.truncated:
                dropped["truncated"] += 1
            elif (ends := aligner.ends(trace)) is not None:
                yield query_prefixes(trace, ends, search_plan(len(ends), probing))
                if is_audited(probing, trace.id, seed):
                    samples, threshold = probing.sampling.samples, probing.threshold
                    yield query_prefixes(trace, ends, ForwardScanPlan(len(ends), samples, threshold))

    total = _count_searches(ctx, traces, probing, seed)
    with RowFile() as scans, closing(sampler.run("probe prefixes", Purpose.PROBE, total, queries())) as done:
        for name, (search, *audits) in groupby(done, lambda query: query.trace.id):
            if name in sampler.failed:
                continue
            plan = search.plan
            assert isinstance(plan, CrossingSearch)
            bounds += sampler.cost_bounds(search.trace, search.ends, plan)
            scan = scan_of(search.trace, search.ends, plan)
            scans.append(scan)
            problem = known[search.trace.problem_id]
            ctx.progress.trace(partial(scanned_trace, checkpoint, problem, search.trace, scan))
            for audit in audits:
                assert isinstance(audit.plan, ForwardScanPlan)
                counts["audited"] += 1
                counts["audits with another crossing"] += audit.plan.crossing != plan.crossing
        return ctx.publish(
            "scans",
            scans,
            rows_in=traces.rows,
            dropped=dict(dropped),
            usage=sampler.usage,
            cost_bounds=bounds,
            counts=dict(counts),
            skipped=aligner.undecodable + skipped_rows(sampler.failed),
        )


@step("sampling")
def reestimate_crossings(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    traces: ArtifactRef,
    scans: ArtifactRef,
    probing: Probing,
    share: float,
    seed: int,
) -> ArtifactRef:
    """Rows of CrossingEstimate: p at a `share` of the crossings, estimated on fresh samples. Reported, not used.

    The first estimate is biased upwards, because the crossing was selected for it. A crossing whose fresh estimate
    does not pass is counted as false. Raises TooManyFailed.
    """
    # A full estimate: a sequential test stops early, so its share is biased.
    total, counts = probing.sampling.samples, Counter[str]()
    sampler = PrefixSampler(
        ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), answer_probe(probing), seed
    )
    queries = (
        query_prefixes(trace, [scan.cut], FullEstimate(1, total))
        for trace, scan in crossed_traces(ctx, traces, scans)
        if is_reestimated(scan, share, seed)
    )
    crossed = (scan for scan in ctx.artifacts.stream(scans, Scan) if scan.crossing is not None)
    rows_in = sum(is_reestimated(scan, share, seed) for scan in crossed)
    done = sampler.run("reestimate crossings", Purpose.REESTIMATE, rows_in, queries)
    with RowFile() as estimates, closing(done):
        for query in done:
            if query.trace.id in sampler.failed:
                continue
            assert isinstance(query.plan, FullEstimate)
            right = count_right(query.plan.outcomes[0])
            counts["false crossings"] += right < min_successes(total, probing.threshold)
            counts["fresh probes"] += total
            counts["right of fresh probes"] += right
            estimates.append(
                CrossingEstimate(problem_id=query.trace.problem_id, sample=query.trace.sample, right=right, total=total)
            )
        return ctx.publish(
            "crossing-estimates",
            estimates,
            rows_in=rows_in,
            usage=sampler.usage,
            counts=dict(counts),
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
    finalizer = Finalizer(ctx.resources, ctx.resources.checkpoint(model), by_id(ctx, problems), finalizing, seed)
    with RowFile() as premature, RowFile() as rows:
        if finalizing.premature_stop:
            _sample_premature_stops(ctx, finalizer, traces, scans, premature)
        failed, dropped = dict[str, FailedRequest](), Counter[str]()
        crossed = _count_crossings(ctx, scans)
        cut = left_joined(
            crossed_traces(ctx, traces, scans), premature.read(OptimisedTrace), lambda pair: trace_name(pair[0])
        )
        prefixes = (((trace, scan.cut, stop), prefix_of(trace, scan.cut)) for (trace, scan), stop in cut)
        with closing(finalizer.run("finalize", Purpose.FINALIZE, crossed, prefixes)) as done:
            for (trace, end, stop), group in done:
                if isinstance(group, FailedRequest):
                    failed[trace.id] = group
                elif (ending := shortest_right(group)) is None:
                    dropped["no-right-ending"] += 1
                else:
                    rows.append(
                        OptimisedTrace(
                            problem_id=trace.problem_id,
                            sample=trace.sample,
                            token_ids=trace.token_ids[:end] + ending,
                            premature_ids=stop.token_ids if stop else None,
                        )
                    )
        dropped["never-crosses"] += scans.rows - crossed
        return ctx.publish(
            "optimised",
            rows,
            rows_in=scans.rows,
            dropped=dict(+dropped),
            usage=finalizer.usage,
            skipped=skipped_rows(failed),
        )


def crossed_traces(ctx: RunContext, traces: ArtifactRef, scans: ArtifactRef) -> Iterator[tuple[Trace, Scan]]:
    """The traces that cross, each with its scan."""
    rows = left_joined(ctx.artifacts.stream(traces, Trace), ctx.artifacts.stream(scans, Scan), trace_name)
    return ((trace, scan) for trace, scan in rows if scan and scan.crossing is not None)


def _count_crossings(ctx: RunContext, scans: ArtifactRef) -> int:
    return sum(scan.crossing is not None for scan in ctx.artifacts.stream(scans, Scan))


def _sample_premature_stops(
    ctx: RunContext, finalizer: Finalizer, traces: ArtifactRef, scans: ArtifactRef, stops: RowFile
) -> None:
    """Appends to `stops`, as rows of OptimisedTrace, completions cut at the last prefix that did not pass, with a wrong
    answer.

    Absent: traces without a failing prefix before the crossing, traces whose ending is not wrong, failed requests.
    """
    total = sum(last_failed_probe(scan) is not None for scan in ctx.artifacts.stream(scans, Scan))
    prefixes = (
        ((trace, scan.ends[probe.segment]), prefix_of(trace, scan.ends[probe.segment]))
        for trace, scan in crossed_traces(ctx, traces, scans)
        if (probe := last_failed_probe(scan))
    )
    with closing(finalizer.run("premature", Purpose.PREMATURE, total, prefixes, count=1)) as done:
        for (trace, end), group in done:
            if not isinstance(group, FailedRequest) and (ending := first_wrong(group)):
                token_ids = trace.token_ids[:end] + ending
                stops.append(OptimisedTrace(problem_id=trace.problem_id, sample=trace.sample, token_ids=token_ids))


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
    prompts, dropped = prompts_of(ctx, model, problems), Counter[str]()
    rows = left_joined(ctx.artifacts.stream(traces, Trace), ctx.artifacts.stream(optimised, OptimisedTrace), trace_name)
    with RowFile() as pairs:
        for _, of_problem in groupby(rows, lambda row: row[0].problem_id):
            group = list(of_problem)
            shortened = [row for _, row in group if row]
            built, unfit = preference_pairs(
                prompts, [trace for trace, _ in group], shortened, pairing.rejected, max_length
            )
            pairs.extend(built)
            dropped += unfit
        return ctx.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped))


def search_plan(prefixes: int, probing: DtoProbing) -> CrossingSearch:
    """The search for the crossing of a trace with so many prefixes."""
    total, threshold = probing.sampling.samples, probing.threshold
    if isinstance(probing.search, BinarySearch):
        return BinarySearchPlan(prefixes, total, threshold)
    return ForwardScanPlan(prefixes, total, threshold, probing.search.lookahead)


def _count_searches(ctx: RunContext, traces: ArtifactRef, probing: DtoProbing, seed: int) -> int:
    """Number of searches and audits, without those of traces whose tokens cannot be aligned with text."""
    rows = ctx.artifacts.columns(traces, "problem_id", "sample", "truncated")
    names = [f"{problem}/{sample}" for problem, sample, truncated in rows if not truncated]
    return len(names) + sum(is_audited(probing, name, seed) for name in names)


def is_audited(probing: DtoProbing, trace_id: str, seed: int) -> bool:
    """Whether a trace is scanned from the front in addition to a binary search. Depends on seed and trace id alone."""
    share = probing.search.audited if isinstance(probing.search, BinarySearch) else 0.0
    return _is_drawn(f"audit/{seed}/{trace_id}", share)


def is_reestimated(scan: Scan, share: float, seed: int) -> bool:
    """Whether a crossing is estimated again. Depends on seed and trace alone, so a larger share holds a smaller one."""
    problem, sample = trace_name(scan)
    return _is_drawn(f"reestimate/{seed}/{problem}/{sample}", share)


def _is_drawn(name: str, share: float) -> bool:
    return random.Random(name).random() < share
