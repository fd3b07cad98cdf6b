"""Makes the bundled tiny model from scratch: corpus, tokenizer, weights, and the figures of its card."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from conf.tiny_model import TinyModel
from reasoning.stories import Split
from tasks.runtime.context import RunContext
from tasks.steps.dto import probe_prefixes
from tasks.steps.problems import draw_problems
from tasks.steps.sampling import sample_traces
from tasks.steps.tiny_model import first_samples, pretrain, write_card, write_corpus


@flow(name="tiny-model", flow_run_name="tiny-model-seed-{settings.seed}", persist_result=False)
def tiny_model(settings: TinyModel) -> Path:
    """Returns the path of the card."""
    with RunContext("tiny-model", settings.storage, settings.engine) as ctx:
        ctx.directory.save_settings(settings)
        seed = settings.seed
        corpus = write_corpus(
            ctx,
            lessons=settings.lessons,
            teacher=settings.teacher,
            batch=settings.training.global_batch_size,
            seed=seed,
        )
        model = pretrain(ctx, corpus=corpus, training=settings.training, seed=seed)
        problems = draw_problems(ctx, source=settings.card.problems, split=Split.HELDOUT, seed=seed)
        traces = sample_traces(ctx, model=model, problems=problems, sampling=settings.card.sampling, seed=seed)
        probed = first_samples(ctx, traces=traces, count=settings.probed)
        scans = probe_prefixes(
            ctx,
            model=model,
            problems=problems,
            traces=probed,
            segmentation=settings.segmentation,
            probing=settings.probing,
            seed=seed,
        )
        return write_card(ctx, settings, model, problems, traces, scans)
