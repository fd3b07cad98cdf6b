"""Pooling over seeds, worked out by hand."""

import json

import pytest

from tasks.reports.pooling import figures, figures_by_seed
from tests.tasks.reports.reports import MAIN, OTHER, models, scores


def test_seeds_are_pooled_by_problem():
    found = figures(scores(), models(), benchmark=MAIN)
    base, dto, sft = found["models"]
    # base: a ½ right, 20 tokens; b 0, 20; c 1, 40
    assert (base["name"], base["role"], base["problems"], base["samples"]) == ("base", "base", 3, 4)
    assert (base["accuracy"], base["mean_tokens"]) == pytest.approx((0.5, 80 / 3))
    # dto: a ½, 5; b 1, 10; c 1, 20; sft: a ½, 10; b 0, 20; c 1, 40
    assert (dto["accuracy"], dto["mean_tokens"]) == pytest.approx((2.5 / 3, 35 / 3))
    assert (sft["accuracy"], sft["mean_tokens"]) == pytest.approx((0.5, 70 / 3))
    assert dto["by_subject"]["algebra"]["accuracy"] == 0.5
    assert dto["by_level"]["2"]["mean_tokens"] == 15
    json.dumps(found)  # plain numbers


def test_each_model_is_compared_with_the_base_and_each_control_with_the_method():
    found = figures(scores(), models(), benchmark=MAIN)
    dto, sft = found["comparisons"]
    assert (dto["against"], dto["accuracy_delta"], dto["tokens_ratio"]) == (
        "base",
        pytest.approx(1 / 3),
        pytest.approx(35 / 80),
    )
    assert (dto["break_even"]["build_flops"], dto["trained_on"]) == (2.5e12, 10.5)  # means over the seeds
    # The base was wrong on a (once of two) and on b: dto is right on ½ and 1; the base's other sample of a was right.
    assert dto["by_base_correctness"]["wrong_to_right"] == 0.75
    assert dto["by_base_correctness"]["wrong_to_right_of_base"] == 1
    assert sft["by_base_correctness"] is None  # its samples are not independent of the base's
    (control,) = found["vs_method"]
    assert (control["model"], control["against"]) == ("sft", "dto")
    assert (control["accuracy_delta"], control["tokens_ratio"]) == pytest.approx((-1 / 3, 2))


def test_each_seed_has_figures_of_its_own():
    first, second = figures_by_seed(scores(), models(), MAIN)
    assert (first["seed"], second["seed"]) == (0, 1)
    assert [model["accuracy"] for model in first["models"]] == [0.5, 1, 0]
    assert [model["mean_tokens"] for model in second["models"]] == [35, 12.5, 26]
    assert second["comparisons"][0]["break_even"]["build_flops"] == 3e12


def test_a_benchmark_may_lack_controls():
    found = figures(scores(), models(), benchmark=OTHER)
    assert [model["name"] for model in found["models"]] == ["base", "dto"]
    assert found["vs_method"] == []
    assert found["comparisons"][0]["tokens_ratio"] == pytest.approx(40 / 60)
    assert found["models"][0]["by_subject"] == {}
