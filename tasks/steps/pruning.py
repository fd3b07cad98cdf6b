"""The steps that prune (DTO, arXiv 2505.21765): propose segments, remove them, confirm the rest. The rules are in
`reasoning.pruning`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from conf.dto import LlmPruning
from conf.llm import Llm
from conf.probing import Finalizing, Probing
from models.inference.engine import FailedRequest
from models.inference.rollout_store import Purpose
from reasoning.llm_queries import InvalidReply, with_token_limit
from reasoning.pruning import PruningPlan, pruned_trace
from reasoning.pruning_proposals import pruning_query
from reasoning.records import OptimisedTrace, ProposedRemovals, Scan, Trace, Usage, by_trace, left_joined, trace_name
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.runtime.step_inputs import StepInputs
from tasks.steps.dto import crossed_traces
from tasks.steps.llm import query_llm
from tasks.steps.prefix_sampling import Finalizer, LogProbScorer, Prefix, PrefixQuery, PrefixSampler, answer_probe
from tasks.steps.problems import by_id

PRUNED_TOGETHER = 4096
"""Traces that are pruned at a time: they are in memory through several rounds of short samples."""
UNCHANGED = "unchanged, the engine failed"
PRUNING_COUNTS = (
    "traces pruned",
    "not confirmed",
    "segments not needed",
    "unnatural without",
    "segments removed",
    "tokens before",
    "tokens after",
    UNCHANGED,
)


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
    cut = [(trace, scan) for trace, scan, _ in cut_traces(ctx, inputs) if len(scan.kept_ends) > 2]
    names = [(trace.problem_id, trace.sample) for trace, _ in cut]
    queries = [
        pruning_query(known[trace.problem_id].text, checkpoint.texts_between(trace.token_ids, (0, *scan.kept_ends)))
        for trace, scan in cut
    ]
    queries = with_token_limit(queries, pruning.max_tokens, "pruning.max_tokens")
    answers = query_llm(ctx, llm, "propose removals", queries, pruning.max_invalid_fraction)
    proposals = [
        ProposedRemovals(problem_id=name[0], sample=name[1], segments=tuple(sorted(set(reply.remove))))
        for name, reply in zip(names, answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    dropped = answers.invalid + Counter({"no-inner-segment": inputs.finalized.rows - len(names)})
    return ctx.publish(
        "proposals",
        proposals,
        rows_in=inputs.finalized.rows,
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
    proposed = by_trace(ctx.artifacts.rows(proposals, ProposedRemovals)) if proposals else None
    pruner = Pruner(ctx, inputs, max_logprob_drop, probing, finalizing, seed)
    cut = cut_traces(ctx, inputs)
    with RowFile() as pruned:
        while group := list(islice(cut, PRUNED_TOGETHER)):
            pruned.extend(pruner.prune([(row, _pruning(trace, scan, proposed, probing)) for trace, scan, row in group]))
        counts = {name: count for name, count in pruner.counts.items() if count or name != UNCHANGED}
        return ctx.publish("optimised", pruned, rows_in=inputs.finalized.rows, usage=pruner.usage, counts=counts)


def cut_traces(ctx: RunContext, inputs: PruningInputs) -> Iterator[tuple[Trace, Scan, OptimisedTrace]]:
    """Each finalized trace with its original and its scan."""
    crossed = crossed_traces(ctx, inputs.traces, inputs.scans)
    finalized = ctx.artifacts.stream(inputs.finalized, OptimisedTrace)
    rows = left_joined(crossed, finalized, lambda pair: trace_name(pair[0]))
    return ((trace, scan, row) for (trace, scan), row in rows if row)


def _pruning(
    trace: Trace, scan: Scan, proposed: Mapping[tuple[str, int], ProposedRemovals] | None, probing: Probing
) -> PruningPlan:
    """A trace without a proposal has nothing to remove; without any proposals, every inner segment is tried."""
    segments = None
    if proposed is not None:
        row = proposed.get(trace_name(trace))
        segments = row.segments if row else ()
    return PruningPlan(trace, scan.kept_ends, probing.sampling.samples, probing.threshold, segments)


class Pruner:
    """Prunes groups of finalized traces; adds up usage and counts."""

    def __init__(
        self,
        ctx: StepContext,
        inputs: PruningInputs,
        max_logprob_drop: float,
        probing: Probing,
        finalizing: Finalizing,
        seed: int,
    ):
        model, known = ctx.resources.checkpoint(inputs.model), by_id(ctx, inputs.problems)
        self._sampler = PrefixSampler(ctx.resources, model, known, answer_probe(probing), seed)
        total = inputs.finalized.rows
        self._scorer = LogProbScorer(ctx.resources, model, known, total)
        self._finalizer = Finalizer(ctx.resources, model, known, finalizing, seed)
        self._max_logprob_drop, self._threshold = max_logprob_drop, probing.threshold
        # The share that may fail is one of all traces, not of a group.
        self._failed_probes = ctx.resources.failure_budget("prune segments", total)
        self._failed_endings = ctx.resources.failure_budget("prune check", total)
        self.counts = Counter[str](dict.fromkeys(PRUNING_COUNTS, 0))

    @property
    def usage(self) -> Usage:
        return self._sampler.usage + self._scorer.usage + self._finalizer.usage

    def prune(self, rows: Sequence[tuple[OptimisedTrace, PruningPlan]]) -> list[OptimisedTrace]:
        """Each row, pruned where fresh endings confirm its answer. Raises TooManyFailed."""
        plans = [plan for _, plan in rows]
        queries = [PrefixQuery(plan.trace, plan, plan.without, len(plan.whole_prefix())) for plan in plans]
        self._sampler.run_queries("prune segments", Purpose.PRUNE, queries, failures=self._failed_probes)
        for plan in plans:
            if plan.trace.id in self._sampler.failed:
                plan.restore_all()
                self.counts[UNCHANGED] += 1
        self.counts["segments not needed"] += sum(len(plan.removed) for plan in plans)
        failed_before = self._scorer.failed
        self.counts["unnatural without"] += restore_unnatural(self._scorer, plans, self._max_logprob_drop)
        self.counts[UNCHANGED] += self._scorer.failed - failed_before
        results = self._confirmed(rows)
        self.counts["tokens before"] += sum(len(row.token_ids) for row, _ in rows)
        self.counts["tokens after"] += sum(len(row.token_ids) for row in results)
        return results

    def _confirmed(self, rows: Sequence[tuple[OptimisedTrace, PruningPlan]]) -> list[OptimisedTrace]:
        """Each row, without the removed segments where fresh endings confirm its answer."""
        prefixes = [Prefix(row.problem_id, plan.prefix()) for row, plan in rows if plan.removed]
        purpose, failures = Purpose.PRUNE_CHECK, self._failed_endings
        endings = iter(self._finalizer.sample_endings("prune check", purpose, prefixes, failures=failures))
        results = []
        for row, plan in rows:
            result, group = row, next(endings) if plan.removed else None
            if isinstance(group, FailedRequest):
                self.counts[UNCHANGED] += 1
            elif group is not None:
                result = pruned_trace(row, plan, group, self._threshold)
                self.counts["traces pruned" if result.removed else "not confirmed"] += 1
            self.counts["segments removed"] += len(result.removed)
            results.append(result)
        return results


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
