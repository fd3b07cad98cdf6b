"""The report of a run: figures, intervals and ledger, as JSON, on the terminal and in Prefect."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from conf.base import Settings
from conf.multi_seed import experiment
from conf.published import published
from reasoning.records import EvaluatedDialogue, completed
from reasoning.rewards import reward_gain
from tasks.reports.frames import records, seed_models, seed_scores
from tasks.reports.layout import console, report_tables
from tasks.reports.pooling import figures, figures_by_seed
from tasks.reports.published import published_tables
from tasks.reports.seed_results import SeedResult
from tasks.reports.show_report import print_report
from tasks.runtime.context import RunContext
from tasks.runtime.progress import API_AWAY
from tasks.runtime.run_directory import PAGE_FILE

DESCRIPTIONS = {
    "Result": "95 % intervals, clustered by problem",
    "Accuracy at a token budget, % (truncated)": "The same completions, each cut at the budget",
    "Ledger": "What each step took and cost",
    "Engine": "Rollouts and prompt tokens, relative to the naive way and to the minimum",
}


def write_report(ctx: RunContext, settings: Settings, results: Sequence[SeedResult]) -> dict[str, Any]:
    """Writes `report.json`, prints the tables, publishes Prefect artifacts; several seeds are pooled."""
    main, *others = results[0].eval_sets
    scores, models = seed_scores(results), seed_models(results)
    budgets = experiment(settings).budgets
    pooled = {name: figures(scores, models, budgets, benchmark=name) for name in (main, *others)}
    names = dict.fromkeys(name for result in results for name in result.versions)
    report = {
        "pipeline": getattr(settings, "pipeline", ""),
        "preset": getattr(settings, "preset", ""),
        "warnings": [warning for result in results for warning in (*result.warnings, *_stale(result))],
        "seeds": [result.seed for result in results],
        "benchmark": main,
        **pooled[main],
        "others": {name: pooled[name] for name in others},
        "by_seed": figures_by_seed(scores, models, main) if len(results) > 1 else [],
        "tables": _tables(results),
        "ledger": [line.model_dump() for result in results for line in result.ledger],
        "config": settings.model_dump(mode="json"),
        "versions": {name: _each_once(result.versions.get(name, "unknown") for result in results) for name in names},
        "written_on": _each_once(result.machine for result in results),
    }
    report = _finite(report)
    if paper := published(report["pipeline"], report["preset"]):
        report["tables"] += published_tables(report, settings, paper)
    path = ctx.directory.save_report(report)
    tables = report_tables(report)
    print_report(report["warnings"], tables)
    for stage, folder in _trained_models(report):
        console().print(
            f"Trained model: {folder} ({stage}; brevity export writes it for other programs)", soft_wrap=True
        )
    console().print(f"Report: {path}", soft_wrap=True)
    try:
        _publish(report, tables, path)
    except API_AWAY as error:
        ctx.progress.note(f"not on Prefect's page, because its server did not answer ({error})", logging.WARNING)
    return report


def _stale(result: SeedResult) -> list[str]:
    steps = ", ".join(result.stale_steps)
    return [f"seed {result.seed} was evaluated with other code of {steps}"] if steps else []


def _each_once(names: Iterable[str]) -> str:
    """Seeds may have run on several machines."""
    return "; ".join(dict.fromkeys(names))


def _tables(results: Sequence[SeedResult]) -> list[dict[str, Any]]:
    """Each seed's own tables, then the pooled one of its dialogues."""
    own = [
        {"title": table.title + f", seed {result.seed}" * (len(results) > 1), "rows": table.rows, "is_pooled": False}
        for result in results
        for table in result.tables
    ]
    return own + model_pairs_table([result.dialogues for result in results])


def model_pairs_table(seeds: Sequence[Mapping[str, Sequence[EvaluatedDialogue]]]) -> list[dict[str, Any]]:
    """Means over the dialogues of each model pair, all seeds together; no table if there are no dialogues."""
    pairs = {name: completed(row for seed in seeds for row in seed[name]) for name in seeds[0]}
    if not pairs:
        return []
    first = next(iter(pairs))
    dialogues = pd.DataFrame([{"pair": name} | _dialogue_row(row) for name, rows in pairs.items() for row in rows])
    means = dialogues.groupby("pair", sort=False).mean().reindex(list(pairs))
    gains = [reward_gain(rows, pairs[first]) for rows in pairs.values()]
    table = pd.DataFrame({name: means[name].map(form.format) for name, form in DIALOGUE_FORMS.items()})
    table["reward"] = [f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]" for gain, (low, high) in gains]
    rows = records(table.reset_index(names="pair"))
    return [{"title": f"Dialogues; rewards relative to {first}", "rows": rows, "is_pooled": True}]


DIALOGUE_FORMS = {
    "turns": "{:.2f}",
    "long tokens": "{:.1f}",
    "short tokens": "{:.1f}",
    "prompt tokens": "{:.0f}",
    "well-formed %": "{:.1f}",
    "cap hit %": "{:.2f}",
}


def _dialogue_row(row: EvaluatedDialogue) -> dict[str, float]:
    return {
        "turns": len(row.calls),
        "long tokens": sum(call.tokens for call in row.long_calls),
        "short tokens": sum(call.tokens for call in row.short_calls),
        "prompt tokens": row.prompt_tokens,
        "well-formed %": 100.0 * row.is_well_formed,
        "cap hit %": 100.0 * row.hit_cap,
    }


def _finite(value: Any) -> Any:
    """None instead of NaN and of infinite bounds (intervals over one problem), which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def artifact_key(name: str) -> str:
    """`name` as Prefect wants the keys of artifacts: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _publish(report: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """On the run's page: the summary, then each table."""
    key = artifact_key(f"{report['pipeline']}-{report['preset']}")
    create_markdown_artifact(summary(report, path), key=f"{key}-summary", description="What came out")
    page = path.with_name(PAGE_FILE)
    create_link_artifact(page.as_uri(), link_text=str(page), key=f"{key}-page", description="The page of the run")
    for title, table in tables.items():
        create_table_artifact(
            records(table), key=artifact_key(f"{key}-{title}"), description=DESCRIPTIONS.get(title, title)
        )


def _trained_models(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The training step and the folder of each model that the run has trained on this machine."""
    trained = [line for line in report["ledger"] if line["stage"].startswith("train-") and line["artifact"]]
    return [(line["stage"], line["artifact"]) for line in trained]


def summary(report: Mapping[str, Any], path: Path) -> str:
    """The result in Markdown: warnings, comparisons, and where report and models lie."""
    comparisons = [
        f"- **{escaped(entry['model'])}** against {escaped(entry['against'])}: tokens × {entry['tokens_ratio']:.3f}, "
        f"accuracy {100 * entry['accuracy_delta']:+.1f} points"
        for entry in report["comparisons"]
    ]
    warnings = [f"**Warning:** {escaped(warning)}\n" for warning in report["warnings"]]
    models = [f"- {escaped(stage)}: `{folder}`" for stage, folder in _trained_models(report)]
    page = f"Page: `{path.with_name(PAGE_FILE)}` (`brevity view {path.parent}` shows it on a port)"
    sections = ["# Result", *warnings, *comparisons, "", f"Report: `{path}`", "", page]
    return "\n".join([*sections, *(["", "## Trained models", *models] if models else [])])


def escaped(text: str) -> str:
    """`text` without effect as Markdown or HTML; names come from settings and data."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~-])", r"\\\1", text.replace("\n", " "))
