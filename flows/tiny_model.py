"""Makes the bundled tiny model from scratch: corpus, tokenizer, weights, and the figures of its card."""

from __future__ import annotations

from pathlib import Path

from conf.tiny_model import BundledModel, TinyModel
from flows.pipeline import pipeline
from reasoning.model_card import card_text
from reasoning.stories import Split
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.dto import probe_prefixes
from tasks.steps.problems import load_problems
from tasks.steps.sampling import sample_traces
from tasks.steps.tiny_model import Trained, figures_of, first_samples, pretrain, write_card, write_corpus


def run_tiny_model(ctx: RunContext, settings: TinyModel) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the card."""
    ctx.directory.save_settings(settings)
    trained = train_and_probe(ctx, settings)
    return write_card(ctx, settings, trained.model, figures_of(ctx, settings, trained), card_text)


def train_and_probe(ctx: RunContext, settings: TinyModel) -> Trained:
    """The model, and what its card is made of."""
    seed = settings.seed
    corpus = write_corpus(
        ctx,
        lessons=settings.lessons,
        teacher=settings.teacher,
        batch=settings.training.global_batch_size,
        seed=seed,
    )
    model = pretrain(ctx, corpus=corpus, training=settings.training, seed=seed)
    return probed(ctx, settings, model)


def probed(ctx: RunContext, settings: BundledModel, model: ArtifactRef) -> Trained:
    """Samples and probes held-out problems."""
    seed = settings.seed
    problems = load_problems(ctx, settings.card.problems, Split.HELDOUT, seed)
    traces = sample_traces(ctx, model=model, problems=problems, sampling=settings.card.sampling, seed=seed)
    first = first_samples(ctx, traces=traces, count=settings.probed)
    scans = probe_prefixes(
        ctx,
        model=model,
        problems=problems,
        traces=first,
        segmentation=settings.segmentation,
        probing=settings.probing,
        seed=seed,
    )
    return Trained(model, problems, traces, scans)


tiny_model = pipeline(TinyModel, run_tiny_model)
