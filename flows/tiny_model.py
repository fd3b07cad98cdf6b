"""Makes the bundled tiny model from scratch: corpus, tokenizer, weights, and the figures of its card."""

from __future__ import annotations

from pathlib import Path

from conf.tiny_model import TinyModel
from flows.pipeline import pipeline
from reasoning.stories import Split
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.dto import probe_prefixes
from tasks.steps.problems import draw_problems
from tasks.steps.sampling import sample_traces
from tasks.steps.tiny_model import first_samples, pretrain, write_card, write_corpus


def run_tiny_model(ctx: RunContext, settings: TinyModel) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the card."""
    ctx.directory.save_settings(settings)
    return write_card(ctx, settings, *train_and_probe(ctx, settings))


def train_and_probe(ctx: RunContext, settings: TinyModel) -> tuple[ArtifactRef, ArtifactRef, ArtifactRef, ArtifactRef]:
    """The model, held-out problems, the model's traces of them, and the scans of some traces."""
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
    return model, problems, traces, scans


tiny_model = pipeline(TinyModel, run_tiny_model)
