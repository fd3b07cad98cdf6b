"""Prediction of steps from recipes and counts of earlier results, by hand."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from reasoning.records import StageCount
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.cache_index import CachedResult
from tasks.runtime.prediction import (
    UNKNOWN,
    Certainty,
    Figure,
    Input,
    Pilot,
    Prediction,
    Prices,
    StepCall,
    choose_pilot,
    new_share,
    predict,
    reasons,
    total,
)

MODEL = ("inputs", "model")
ROWS = ("inputs", "problems")
KINDS = {"problems": "problems", "model": "checkpoint"}


def recipe(step: str = "sample-traces", version: str = "1", **inputs: Any) -> dict[str, Any]:
    """Inputs named in KINDS are digests of artifacts."""
    named = {name: f"{KINDS[name]}:{value}" if name in KINDS else value for name, value in inputs.items()}
    return {"step": step, "version": version, "inputs": named}


def call(
    inputs: Mapping[str, Any],
    kind: str = "sampling",
    rows: float = 10,
    share: float | None = None,
    prices: Prices | None = None,
) -> StepCall:
    """A call with `rows` rows in. `share`: the input is planned, and this share of it is new."""
    certainty = Certainty.EXACT if share is None else Certainty.ESTIMATE
    given = {}
    for name in (name for name in ("model", "problems") if name in inputs):
        ref = ArtifactRef(kind=KINDS[name], uri="", digest=inputs[name], rows=round(rows))
        figure = Figure(rows, certainty) if name == "problems" else Figure(1)
        given["inputs", name] = Input(ref, name == "model", figure, share if name == "problems" else None)
    return StepCall("sample-traces", kind, recipe(**inputs), given, prices)


def result(number: int = 0, rows: int = 20, version: str = "1", inputs: Any = (), **count: Any) -> CachedResult:
    """An earlier result with `rows` rows out. `count`: fields of its StageCount."""
    counted = StageCount.model_validate({"rows_in": 10, "rows_out": rows, "dropped": {}} | count)
    artifact = ArtifactRef(kind="traces", uri="", digest=f"d{number}", rows=rows, count=counted)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return CachedResult(f"sample-traces-{number}", recipe(version=version, **dict(inputs)), artifact, moment, moment)


SAMPLING = {"samples": 2, "max_tokens": 100}
GIVEN: dict[str, Any] = {"model": "m", "problems": "p10", "sampling": SAMPLING, "seed": 0}
SIZES = {"problems:p10": 10}


def predicted(asked: StepCall, earlier: CachedResult, share: float = 1.0) -> Prediction:
    return predict(asked, choose_pilot(asked, [earlier], {}, SIZES, {"traces:d0": 400}), share)


def test_cost_and_rows_grow_with_the_rows_of_the_main_input():
    earlier = result(inputs=GIVEN, generated_tokens=1000, seconds=30, flops=1.0)
    told = predicted(call(GIVEN | {"problems": "p40"}, rows=40), earlier, share=0.75)
    # Four times the rows, of which three quarters are new: 1000 · 4 · 0.75.
    assert told.tokens == (3000, Certainty.ESTIMATE)
    assert told.seconds.value == told.gpu_seconds.value == 90
    assert told.rows_in == (40, Certainty.EXACT)
    assert told.rows_out == (80, Certainty.ESTIMATE)
    assert told.bytes.value == 80 * 400 / 20 + 4 * 3000


@pytest.mark.parametrize(
    ("pilot_gpus", "gpus", "kind", "seconds"),
    [
        (1, 8, "sampling", 5),
        (8, 1, "sampling", 320),
        (0, 0, "sampling", 40),
        (1, 8, "data", 40),
        (1, 8, "training", 40 / 6),  # of a batch of 12, six processes take two rows each
        (8, 1, "training", 240),
    ],
)
def test_more_gpus_take_less_time(pilot_gpus: int, gpus: int, kind: str, seconds: float):
    given = GIVEN | {"training": {"global_batch_size": 12}}
    earlier = result(inputs=given, seconds=40, engine_busy=3, flops=1.0, gpus=pilot_gpus)
    asked = call(given, kind)
    told = predict(asked, choose_pilot(asked, [earlier], {}, SIZES, {}), 1.0, gpus)
    assert told.seconds.value == pytest.approx(seconds)
    assert told.gpu_seconds.value == pytest.approx(max(1, gpus) * (3 / 8 if kind == "data" else seconds))


def test_grpo_trains_on_one_gpu_and_takes_the_node():
    given = GIVEN | {"rl": {"max_steps": 5, "global_batch_size": 8}}
    earlier, asked = result(inputs=given, seconds=40, flops=1.0, gpus=1), call(given, "training")
    told = predict(asked, choose_pilot(asked, [earlier], {}, SIZES, {}), 1.0, 8)
    assert (told.seconds.value, told.gpu_seconds.value) == (40, 320)


def test_a_pilot_without_gpus_says_nothing_of_a_node_with_some():
    earlier = result(inputs=GIVEN, seconds=40, generated_tokens=100, flops=1.0)
    told = predict(call(GIVEN), choose_pilot(call(GIVEN), [earlier], {}, SIZES, {}), 1.0, 8)
    assert (told.seconds, told.gpu_seconds, told.tokens.value) == (UNKNOWN, UNKNOWN, 100)


def test_a_pilot_counts_as_if_nothing_had_been_in_the_store():
    earlier = result(inputs=GIVEN, generated_tokens=100, seconds=5, flops=1.0, reused_flops=9.0)
    told = predicted(call(GIVEN | {"seed": 1}, rows=10), earlier)
    assert told.tokens.value == pytest.approx(1000)
    all_reused = result(inputs=GIVEN, reused_flops=9.0)
    assert predicted(call(GIVEN | {"seed": 1}), all_reused).tokens == UNKNOWN
    assert predicted(call(GIVEN), all_reused, share=0.0).tokens.value == 0


def test_more_samples_make_more_rows_and_cost_in_proportion():
    earlier = result(inputs=GIVEN, generated_tokens=1000)
    asked = call(GIVEN | {"sampling": SAMPLING | {"samples": 6}})
    assert new_share(asked, [earlier], {"problems:p10": ["a", "b"]}) == pytest.approx(2 / 3)
    told = predicted(asked, earlier, share=2 / 3)
    assert told.rows_out.value == 60
    assert told.tokens.value == pytest.approx(2000)  # 3000 for all, of which 1000 are stored


def test_samples_of_probes_cost_more_and_make_no_rows():
    inputs = GIVEN | {"sampling": None, "probing": {"sampling": {"samples": 4, "max_tokens": 9}}}
    asked = call(inputs | {"probing": {"sampling": {"samples": 8, "max_tokens": 9}}})
    told = predicted(asked, result(inputs=inputs, generated_tokens=100))
    assert (told.tokens.value, told.rows_out.value) == (200, 20)


ROWS_OF = {"problems:p10": list("abcdefghij"), "problems:p12": list("abcdefghijxy"), "problems:q": list("vw")}


def test_rows_that_an_equal_step_had_are_not_new():
    asked = call(GIVEN | {"problems": "p12"}, rows=12)
    assert new_share(asked, [result(inputs=GIVEN)], ROWS_OF) == pytest.approx(2 / 12)
    both = [result(1, inputs=GIVEN), result(2, inputs=GIVEN | {"problems": "q"})]
    assert new_share(asked, both, ROWS_OF | {"problems:q": ["x"]}) == pytest.approx(1 / 12)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"model": "n"}, {"sampling": SAMPLING | {"max_tokens": 50}}])
def test_another_seed_model_or_setting_makes_all_new(changed: dict[str, Any]):
    asked = call(GIVEN | {"problems": "p12"} | changed, rows=12)
    assert new_share(asked, [result(inputs=GIVEN)], ROWS_OF) == 1


def test_other_code_and_training_make_all_new():
    assert new_share(call(GIVEN), [result(version="0", inputs=GIVEN)], ROWS_OF) == 1
    assert new_share(call(GIVEN | {"problems": "p12"}, "training"), [result(inputs=GIVEN)], ROWS_OF) == 1


def test_a_planned_input_passes_its_share_on():
    asked = call(GIVEN | {"problems": "planned-1"}, rows=12, share=0.25)
    assert new_share(asked, [result(inputs=GIVEN)], {}) == 0.25
    assert new_share(asked, [result(inputs=GIVEN | {"seed": 1})], {}) == 1
    more = call(GIVEN | {"problems": "planned-1", "sampling": SAMPLING | {"samples": 4}}, rows=12, share=0.25)
    assert new_share(more, [result(inputs=GIVEN)], {}) == 1 - 0.75 * 0.5


def test_the_pilot_is_the_most_similar_result_and_then_the_newest():
    asked = call(GIVEN | {"problems": "p12"})
    other_setting = result(1, inputs=GIVEN | {"sampling": SAMPLING | {"max_tokens": 50}})
    other_model = result(2, inputs=GIVEN | {"model": "n"})
    mostly_reused = result(3, inputs=GIVEN, flops=1.0, reused_flops=9.0)
    other_rows = result(4, inputs=GIVEN | {"problems": "q"})
    older = result(5, inputs=GIVEN)

    def chosen(*results: CachedResult) -> int:
        pilot = choose_pilot(asked, results, ROWS_OF, {}, {})
        assert pilot
        return next(number for number, one in enumerate(results) if one.artifact.count is pilot.count)

    assert chosen(other_setting, other_model) == 1
    assert chosen(other_model, mostly_reused) == 1
    assert chosen(mostly_reused, other_rows) == 1
    assert chosen(other_rows, older) == 1
    assert chosen(older, result(6, inputs=GIVEN)) == 0
    assert choose_pilot(asked, [], ROWS_OF, {}, {}) is None


def test_without_a_pilot_the_settings_are_a_bound():
    told = predict(call(GIVEN, rows=10), None, 1.0)
    assert told.rows_out == (20, Certainty.BOUND)
    assert told.tokens == (2000, Certainty.BOUND)  # 10 problems · 2 samples · 100 tokens
    assert told.seconds == UNKNOWN
    turns = predict(call(GIVEN | {"protocol": {"max_rounds": 3}}), None, 1.0)
    probes = predict(call(GIVEN | {"sampling": None, "probing": {"sampling": SAMPLING}}), None, 1.0)
    both = predict(call(GIVEN | {"probing": {"sampling": SAMPLING}}), None, 1.0)
    assert turns.tokens == probes.tokens == both.tokens == UNKNOWN
    assert probes.rows_out.certainty is Certainty.UNKNOWN


def test_a_training_writes_a_checkpoint_and_generates_nothing():
    told = predict(call(GIVEN, "training"), None, 1.0, 1, Figure(4e6))
    assert (told.bytes, told.tokens, told.rows_out) == (Figure(4e6), Figure(0), Figure(1))
    assert told.gpu_seconds == UNKNOWN
    earlier = result(inputs=GIVEN | {"epochs": {"num_train_epochs": 2}}, rows=1, seconds=10)
    told = predicted(call(GIVEN | {"epochs": {"num_train_epochs": 4}}, "training", rows=30), earlier)
    assert told.gpu_seconds.value == 60  # three times the rows, twice the epochs


def test_steps_that_the_settings_fix_do_not_grow_with_the_rows():
    inputs = GIVEN | {"rl": {"max_steps": 40}}
    earlier = result(inputs=inputs, generated_tokens=800, seconds=8)
    told = predicted(call(inputs | {"rl": {"max_steps": 20}}, "training", rows=500), earlier)
    assert (told.tokens.value, told.seconds.value) == (400, 4)


def test_prices_are_those_of_the_settings():
    prices = Prices(prompt=2.0, generated=10.0)
    earlier = result(inputs=GIVEN, prompt_tokens=50_000, generated_tokens=10_000, seconds=9)
    told = predicted(call(GIVEN, "llm", rows=20, prices=prices), earlier)
    # Twice the rows: 0.1 M · 2 + 0.02 M · 10.
    assert told.money.value == pytest.approx(0.4)
    assert (told.llm_tokens.value, told.tokens.value, told.gpu_seconds.value) == (20_000, 0, 0)
    with_engine = result(inputs=GIVEN, prompt_tokens=50_000, flops=1.0, money=0.7, engine_busy=3)
    told = predicted(call(GIVEN, "llm", rows=20, prices=prices), with_engine)
    assert (told.money.value, told.gpu_seconds.value) == (1.4, 6)


def test_a_judge_reads_no_more_problems_than_its_settings_say():
    inputs = GIVEN | {"judging": {"problems": 5}}
    told = predicted(call(inputs, "llm", rows=100, prices=Prices(1, 1)), result(inputs=inputs, generated_tokens=70))
    assert told.llm_tokens.value == 70


def test_reasons_name_each_kind_of_change():
    asked = call(GIVEN)
    assert reasons(asked, []) == ["never made here"]
    assert reasons(asked, [result(inputs=GIVEN)]) == ["its result is missing or damaged"]
    assert reasons(asked, [result(version="0", inputs=GIVEN)]) == ["the code changed"]
    assert reasons(asked, [result(inputs=GIVEN | {"model": "n", "problems": "q"})]) == ["new input: model, problems"]
    assert reasons(asked, [result(inputs=GIVEN | {"seed": 7})]) == ["seed 7 → 0"]
    without = {name: value for name, value in GIVEN.items() if name != "seed"}
    assert reasons(asked, [result(inputs=without)]) == ["seed (absent) → 0"]
    assert reasons(asked, [result(inputs=GIVEN | {"seed": "x" * 99})]) == [f'seed "{"x" * 28}… → 0']
    five = {f"s{number}": 1 for number in range(5)}
    assert reasons(asked, [result(inputs=GIVEN | five)])[3:] == ["2 more settings"]


def test_a_sum_is_as_sure_as_its_least_sure_part():
    assert total([]) == Figure(0)
    assert total([Figure(1), Figure(2, Certainty.BOUND), UNKNOWN]) == (3, Certainty.BOUND)
    assert total([UNKNOWN, UNKNOWN]) == UNKNOWN


def test_no_rows_cost_nothing():
    pilot = Pilot(result(inputs=GIVEN).artifact.count, 20, 0, 0, [])  # type: ignore[arg-type]
    assert predict(call(GIVEN, rows=3), pilot, 1.0).rows_out.certainty is Certainty.UNKNOWN
    assert predict(call(GIVEN, rows=0), pilot, 1.0).tokens.value == 0
