"""Makes the bundled vision-language model from scratch: warm start, corpus, weights, and the figures of its card."""

from __future__ import annotations

from pathlib import Path

from conf.tiny_vision_model import TinyVisionModel
from flows.pipeline import pipeline
from flows.tiny_model import probed
from reasoning.model_card import vision_card_text
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.problems import swap_images
from tasks.steps.sampling import sample_traces
from tasks.steps.tiny_model import Trained, figures_of, pretrain, write_card
from tasks.steps.tiny_vision_model import blind_figures, write_vision_corpus


def run_tiny_vision_model(ctx: RunContext, settings: TinyVisionModel) -> Path:
    """Runs the pipeline in a given run context. Returns the path of the card."""
    ctx.directory.save_settings(settings)
    trained, blind = train_and_look(ctx, settings)
    figures = figures_of(ctx, settings, trained) | blind_figures(ctx, trained.model, blind)
    return write_card(ctx, settings, trained.model, figures, vision_card_text)


def train_and_look(ctx: RunContext, settings: TinyVisionModel) -> tuple[Trained, ArtifactRef]:
    """The model and what its card is made of; and its traces of problems with other problems' images."""
    corpus = write_vision_corpus(
        ctx,
        lessons=settings.lessons,
        teacher=settings.teacher,
        warm=settings.warm_start,
        batch=settings.training.global_batch_size,
        seed=settings.seed,
    )
    model = pretrain(ctx, corpus=corpus, training=settings.training, seed=settings.seed)
    trained = probed(ctx, settings, model)
    swapped = swap_images(ctx, problems=trained.problems)
    blind = sample_traces(ctx, model=model, problems=swapped, sampling=settings.card.sampling, seed=settings.seed)
    return trained, blind


tiny_vision_model = pipeline(TinyVisionModel, run_tiny_vision_model)
