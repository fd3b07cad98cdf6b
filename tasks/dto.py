"""DTO's own steps: probe, finalize, pair (papers, section B).

Knows: how `reasoning.dto`'s rules are put to an engine. Must not know: the rules themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from conf.settings import Finalizing, Pairing, Probing, Segmentation
from models.checkpoint import Checkpoint
from models.engine import Completion, Request
from models.store import Purpose
from reasoning.answers import CLOSE_THINK, final_answer, until_closing_brace
from reasoning.dto import (
    METHOD_VERSION,
    OpenScan,
    first_wrong,
    last_refused,
    preference_pairs,
    shortest_right,
)  # fmt: skip
from reasoning.records import Optimised, Problem, Scan, Trace, Usage, Verdict
from reasoning.segment import METHOD_VERSION as SEGMENT_VERSION
from reasoning.segment import segment_text, token_ends
from reasoning.verifier import METHOD_VERSION as VERIFIER_VERSION
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.workplace import Workplace

VERSION = f"1.{METHOD_VERSION}.{SEGMENT_VERSION}.{VERIFIER_VERSION}"


@step(version=VERSION)
def probe_prefixes(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef,
    segmentation: Segmentation, probing: Probing, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Scan: each trace's prefixes from the front until one passes. Traces cut by max_tokens are set aside."""
    started = time.monotonic()
    checkpoint = place.checkpoint(model)
    known = {problem.id: problem for problem in place.rows(problems, Problem)}
    prompts = {name: checkpoint.prompt_ids(problem) for name, problem in known.items()}
    rows = place.rows(traces, Trace)
    scans = [
        OpenScan(trace, _ends(checkpoint, trace, segmentation), probing.threshold)
        for trace in rows
        if not trace.truncated
    ]
    exit_ids = checkpoint.encode(probing.exit_text)
    usage, wave = Usage(), 0
    while still_open := [scan for scan in scans if scan.is_open]:
        wave += 1
        requests = [
            Request(
                prompts[scan.trace.problem_id] + scan.next_prefix() + exit_ids,
                probing.sampling,
                probing.sampling.samples,
            )
            for scan in still_open
        ]
        drawn = place.draw(f"probe prefix {wave}", checkpoint, requests, Purpose.PROBE, seed)
        asked = [known[scan.trace.problem_id] for scan in still_open]
        answers = [[until_closing_brace(checkpoint.decode(c.token_ids)) for c in group] for group in drawn.completions]
        verdicts, checks = place.verdicts(asked, answers)
        usage = usage + drawn.usage + checks
        for scan, judged in zip(still_open, verdicts, strict=True):
            scan.add([verdict is Verdict.RIGHT for verdict in judged])
    dropped = {"truncated": len(rows) - len(scans)} if len(scans) < len(rows) else {}
    results = [scan.result() for scan in scans]
    return place.publish("scans", results, rows_in=len(rows), dropped=dropped, usage=usage, started=started)


@step(version=VERSION)
def finalize_traces(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, scans: ArtifactRef,
    finalizing: Finalizing, seed: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Optimised: traces cut at their crossing with the shortest correct ending."""
    started = time.monotonic()
    checkpoint = place.checkpoint(model)
    known = {problem.id: problem for problem in place.rows(problems, Problem)}
    trace_of = {(trace.problem_id, trace.sample): trace for trace in place.rows(traces, Trace)}
    all_scans = place.rows(scans, Scan)
    crossed = [scan for scan in all_scans if scan.crossing is not None]
    ends = [scan.probes[-1].end for scan in crossed]
    sources = [trace_of[scan.problem_id, scan.sample] for scan in crossed]
    drawer = _Endings(place, checkpoint, known, finalizing, seed)
    endings, usage = drawer.draw("finalize", Purpose.FINALIZE, sources, ends, finalizing.sampling.samples)
    premature, more = drawer.premature(sources, crossed) if finalizing.premature_stop else ({}, Usage())
    rows: list[Optimised] = []
    dropped = Counter({"never-crosses": len(all_scans) - len(crossed)} if len(all_scans) > len(crossed) else {})
    for source, end, group in zip(sources, ends, endings, strict=True):
        ending = shortest_right(group)
        if ending is None:
            dropped["no-right-ending"] += 1
            continue
        rows.append(Optimised(
            problem_id=source.problem_id, sample=source.sample, token_ids=(*source.token_ids[:end], *ending), kept=end,
            premature_ids=premature.get((source.problem_id, source.sample)),
        ))  # fmt: skip
    return place.publish(
        "optimised", rows, rows_in=len(all_scans), dropped=dict(dropped), usage=usage + more, started=started
    )


@step(version=VERSION)
def build_pairs(
    place: Workplace, model: ArtifactRef, problems: ArtifactRef, traces: ArtifactRef, optimised: ArtifactRef,
    pairing: Pairing, max_length: int,
) -> ArtifactRef:  # fmt: skip
    """Rows of Pair, in token ids."""
    started = time.monotonic()
    checkpoint = place.checkpoint(model)
    prompts = {problem.id: checkpoint.prompt_ids(problem) for problem in place.rows(problems, Problem)}
    rows = place.rows(optimised, Optimised)
    pairs, dropped = preference_pairs(prompts, place.rows(traces, Trace), rows, pairing.rejected, max_length)
    return place.publish("pairs", pairs, rows_in=len(pairs) + dropped.total(), dropped=dict(dropped), started=started)


class _Endings:
    """Draws endings for cut traces: the closing text, then whatever the model goes on with."""

    def __init__(
        self, place: Workplace, model: Checkpoint, problems: dict[str, Problem], finalizing: Finalizing, seed: int
    ):
        self._place, self._model, self._problems, self._seed = place, model, problems, seed
        self._closing = model.encode(finalizing.closing_text)
        self._sampling = finalizing.sampling

    def draw(
        self, stage: str, purpose: Purpose, traces: Sequence[Trace], ends: Sequence[int], count: int
    ) -> tuple[list[list[tuple[tuple[int, ...], Verdict]]], Usage]:
        """For each trace, `count` endings after its first `end` tokens, each with its verdict.

        An ending that does not finish, or does not close the thinking exactly once, has no answer.
        """
        asked = [self._problems[trace.problem_id] for trace in traces]
        requests = [
            Request(self._model.prompt_ids(problem) + trace.token_ids[:end] + self._closing, self._sampling, count)
            for problem, trace, end in zip(asked, traces, ends, strict=True)
        ]
        drawn = self._place.draw(stage, self._model, requests, purpose, self._seed)
        answers = [[self._answer(completion) for completion in group] for group in drawn.completions]
        verdicts, checks = self._place.verdicts(asked, answers)
        endings = [
            [(self._closing + c.token_ids, v) for c, v in zip(group, judged, strict=True)]
            for group, judged in zip(drawn.completions, verdicts, strict=True)
        ]
        return endings, drawn.usage + checks

    def _answer(self, completion: Completion) -> str | None:
        text = self._model.decode(self._closing + completion.token_ids)
        return final_answer(text) if completion.finished and text.count(CLOSE_THINK) == 1 else None

    def premature(
        self, traces: Sequence[Trace], scans: Sequence[Scan]
    ) -> tuple[dict[tuple[str, int], tuple[int, ...]], Usage]:
        """Completions that stop at the last refused prefix and answer wrong there, by (problem id, sample)."""
        refused = [(trace, probe) for trace, scan in zip(traces, scans, strict=True) if (probe := last_refused(scan))]
        early, ends = [trace for trace, _ in refused], [probe.end for _, probe in refused]
        endings, usage = self.draw("premature", Purpose.PREMATURE, early, ends, 1)
        found = {}
        for trace, end, group in zip(early, ends, endings, strict=True):
            ending = first_wrong(group)
            if ending:
                found[trace.problem_id, trace.sample] = (*trace.token_ids[:end], *ending)
        return found, usage


def _ends(model: Checkpoint, trace: Trace, segmentation: Segmentation) -> list[int]:
    """Token ends of the segments of the thinking part."""
    thinking = trace.text.split(CLOSE_THINK)[0]
    segments = segment_text(thinking, segmentation.markers, segmentation.min_chars)
    return token_ends(segments, model.token_texts(trace.token_ids))
