import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin

import pytest
from pydantic import BaseModel

from conf.base import RenamedSetting, Settings
from conf.cot_distillation import CotDistillation
from conf.datasets import DATASETS
from conf.dto import Dto
from conf.engine import Engine
from conf.load import PRESETS, SettingsError, load, presets
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed
from conf.pipelines import PIPELINES
from conf.segmentation import MARKERS
from conf.tiny_model import TinyModel
from conf.training import Lora

ALL_LLM = ("rating.type=llm", "compression.by.type=llm", "llm.url=http://x", "llm.model=m")


def by_level(first: float, *others: float) -> str:
    """An assignment of budgets: the last one given is that of all further levels."""
    budgets = [first, *others]
    return f"compression.budget.by_level={budgets + budgets[-1:] * (10 - len(budgets))}"


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_is_valid(path: Path):
    name = path.name.removesuffix(".toml")
    assert load(PIPELINES[path.parent.name], name).preset == name  # type: ignore[attr-defined]


def test_assignments_reach_nested_fields_with_toml_types():
    settings = load(Dto, "tiny", ("sampling.samples=2", "training.learning_rate=1e-5", "model=some/folder"))
    assert (settings.sampling.samples, settings.training.learning_rate, settings.model) == (2, 1e-5, "some/folder")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("smapling.samples=2", ["smapling", "did you mean 'sampling'"]),
        ("sampling.sample=2", ["sampling.sample", "did you mean 'samples'"]),
        ("sampling.samples=0", ["sampling.samples", "greater than or equal to 1", "given: 0"]),
        ("seed=many", ["seed", "valid integer", "given: 'many'"]),
        ("sampling.max_tokens=2048", ["sampling.max_tokens (2048)", "engine.max_model_len (2048)", "lower the first"]),
        (
            "sampling.max_tokens=1790",
            ["probing.sampling.max_tokens (12 after a trace of 1790)", "engine.max_model_len"],
        ),
        (
            "training.per_device_train_batch_size=5",
            ["global_batch_size (16) must be a multiple of per_device_train_batch_size (5)"],
        ),
        ("training.max_length=1000", ["training.max_length (1000) holds no trace of sampling.max_tokens (768)"]),
        ("sampling.temperature=0", ["temperature 0 always draws the same completion", "set samples to 1, not 4"]),
        ("problems.type=nothing", ["problems.type: must be one of 'boards', 'stories', 'file', 'hub'"]),
        ("problems.type=file", ["problems.path: Field required"]),
        ("problems=5", ["problems: is a section, not a value; set problems.type"]),
        ("pruning=none", ["pruning: is a section, not a value; set pruning.type"]),
        ("benchmark.unseen=3", ["benchmark.unseen: is a section, not a value"]),
        ("controls.sft_learning_rate=1e-6", ["controls: ", "has no effect without 'sft' in controls.trained"]),
        ('controls.trained=["sft","sft"]', ["controls: ", "names a control twice"]),
        ("problems.cuont=3", ["problems.cuont: unknown setting", "did you mean 'count'"]),
        ("pruning.typ=none", ["pruning.typ: unknown setting", "did you mean 'type'"]),
        ("training.lora.rnk=3", ["training.lora.rnk: unknown setting", "did you mean 'r'"]),
        ("segmentation.languages=[]", ["segmentation.languages", "at least 1 item"]),
        ("segmentation.languages=['klingon']", ["segmentation.languages.0", "'chinese'"]),
        ('controls.trained=["sfd"]', ["controls.trained.0", "'sft'"]),
        ("seed", ["section.field=value"]),
        ("seed.x.y=1", ["seed", "valid integer"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(assignment: str, words: list[str]):
    with pytest.raises(SettingsError) as error:
        load(Dto, "tiny", (assignment,))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("pruning.type=none", 'controls.trained=["unpruned"]'), "'unpruned' would be the method itself"),
        (("finalizing.premature_stop=false", 'controls.trained=["paper-pairs"]'), "'paper-pairs' would be the method"),
        (
            ("segmentation.languages=['german']", "segmentation.markers=['Wait']"),
            "languages has no effect where markers are given",
        ),
        (("benchmark.sampling.max_tokens=1790", "controls.early_stop=true"), "after a trace of 1790"),
        (("evaluation.budgets=[64,32]",), "budgets must rise"),
        (("evaluation.budgets=[769]",), "769 is more than the completions' maximum length (768)"),
        (("evaluation.samples={AIME=16}",), "no benchmark 'AIME'; there are the benchmark"),
        (
            ("evaluation.samples={'the benchmark'=2}", "benchmark.sampling={samples=1, temperature=0}"),
            "temperature 0 always draws the same",
        ),
        (("evaluation.references=['a/b']", "engine.endpoints=['http://x:1']"), "evaluation.references are others"),
        (("evaluation.references=['a/b','a/b']",), "references names a model twice"),
        (("benchmark.others={'the benchmark'={}}",), "is the name of another benchmark of this run"),
        (("problems={type='file', path='x.jsonl', count=2, per_subject=2}",), "set only one of them"),
        (("problems.options=1",), "leaves nothing to choose"),
    ],
)
def test_options_that_do_not_go_together_are_refused(assignments: tuple[str, ...], words: str):
    with pytest.raises(SettingsError) as error:
        load(Dto, "tiny", assignments)
    assert words in str(error.value)


def test_languages_choose_the_markers():
    both = load(Dto, "tiny", ("segmentation.languages=['german', 'chinese']",)).segmentation
    assert both.markers == MARKERS["german"] + MARKERS["chinese"]
    assert load(Dto, "tiny", ("segmentation.markers=['Well']",)).segmentation.markers == ("Well",)


def test_written_out_settings_can_be_read_again():
    """As a run's config.json, or as the Prefect UI sends them: with every default spelled out."""
    for changes in ((), ("segmentation.markers=['Well']",), ("segmentation.languages=['german']",)):
        settings = load(Dto, "tiny", changes)
        assert Dto.model_validate_json(settings.model_dump_json()) == settings


def test_multi_seed_presets_take_the_demos_own_settings():
    pooled, demo = load(MultiSeed, "dto").dto, load(Dto, "tiny")
    for name in Dto.model_fields.keys() - {"preset", "controls", "benchmark"}:
        assert getattr(pooled, name) == getattr(demo, name)
    other, alone = load(MultiSeed, "cot-distillation").cot_distillation, load(CotDistillation, "tiny")
    for name in CotDistillation.model_fields.keys() - {"preset", "variants", "benchmarks"}:
        assert getattr(other, name) == getattr(alone, name)
    pair, two = load(MultiSeed, "long-short").long_short, load(LongShort, "tiny")
    for name in LongShort.model_fields.keys() - {"preset", "one_model", "early_stop", "benchmarks"}:
        assert getattr(pair, name) == getattr(two, name)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("dto.seed=3", "dto.seed has no effect here"),
        ("seeds=[1,1]", "seeds names one twice"),
        ("cot_distillation.seed=0", "give dto, cot_distillation or long_short"),
    ],
)
def test_multi_seed_settings_that_cannot_be_run(assignment: str, words: str):
    with pytest.raises(SettingsError, match=words):
        load(MultiSeed, "dto", (assignment,))


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("rating.type=llm",), "rating: an auxiliary model is needed; give llm.url"),
        (("teacher.type=dataset",), "needs problems of a data set that has traces"),
        (
            ("teacher.type=dataset", "problems={type='file', path='x.jsonl'}", "sampling.samples=2"),
            "sampling has no effect: the traces come from the data set",
        ),
        (
            ("teacher={type='dataset', max_tokens=1000}", "problems={type='file', path='x'}", "sft.max_length=800"),
            "holds no trace of teacher.max_tokens (1000)",
        ),
        (("judging.problems=5", "compression.by.type=llm"), "compression.by, judging: an auxiliary model"),
        (("llm.url=http://x", "llm.model=m"), "llm has no effect"),
        (("rating.type=llm", "llm.url=http://x", "llm.model=m", "llm.cap=1.0"), "cap has no effect without prices"),
        ((by_level(0.5, 0.4),), "by_level must not fall"),
        (("compression.budget.by_level=[0.5]",), "at least 10 items"),
        (("compression.budget.unit='share'", by_level(0.5, 30)), "more than the whole thinking"),
        (("finalizing.premature_stop=true",), "finalizing.premature_stop: unknown setting"),
        (("probing.search.type=binary",), "probing.search: unknown setting"),
        ((*ALL_LLM,), "probing and segmentation have no effect"),
        ((*ALL_LLM, "probing={}", "segmentation.min_chars=5"), "probing and segmentation have no effect"),
        (("rating.type=llm", "llm.url=http://x", "llm.model=m", "probing.threshold=0.4"), "only the embedded rater"),
        (
            ("teacher.type=endpoint", "teacher.llm.url=http://x", "teacher.llm.model=m", "teacher.llm.temperature=1.0"),
            "set it there",
        ),
        (("teacher.model=other", 'engine.endpoints=["http://x"]'), "the teacher is another"),
        (("sft.max_length=1000",), r"sft.max_length (1000) holds no trace of sampling.max_tokens"),
        (("dpo.max_length=1000",), r"dpo.max_length (1000) holds no trace of sampling.max_tokens"),
        (("selection.max_traces=5",), r"selection.max_traces (5) is more than sampling.samples (4)"),
        (('variants=["sft","sft"]',), "variants names one twice"),
        (("decontamination.type=off",), "decontamination.reason: Field required"),
        (("decontamination.type=off", "decontamination.reason=no"), "at least 10 characters"),
        (("benchmarks={}",), "at least 1 item"),
        (("sampling.max_tokens=1790",), "probing.sampling.max_tokens (12 after a trace of 1790)"),
    ],
)
def test_distillations_that_cannot_be_run(assignments: tuple[str, ...], words: str):
    with pytest.raises(SettingsError) as error:
        load(CotDistillation, "tiny", assignments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("chunking.type=llm",), "chunking: an auxiliary model is needed"),
        (("llm.url=http://x", "llm.model=m"), "llm has no effect"),
        (("teacher=other", "one_model=true"), "one_model has no meaning beside a teacher"),
        (("teacher=other", 'engine.endpoints=["http://x"]'), "the teacher is another"),
        (("problems.count=15",), "problems.count (15) is less than rl.problems_per_step (16)"),
        (
            ("problems.count=15", "rl.rounds=[]", "one_model=true"),
            "problems.count (15) is less than rl.problems_per_step (16)",
        ),
        (("rl.temperature=2.5",), "rl.temperature"),
        (("rl.collapse_limits.min_tokens=1.2",), "rl.collapse_limits.min_tokens"),
        (("rl.collapse_limits.min_quality_reward=1.0",), "rl.collapse_limits.min_quality_reward"),
        (("selection.max_traces=9",), "selection.max_traces (9) is more than sampling.samples (4)"),
        (("rl.per_device_train_batch_size=33",), "must be a multiple of per_device_train_batch_size (33)"),
        (("protocol.max_turn_tokens=300",), "are more than engine.max_model_len (2048)"),
        (("sft.max_length=1024",), "are more than sft.max_length (1024)"),
        (("protocol.forced_answer_prefix=So it is",), "protocol.forced_answer_prefix"),
        (("sampling.max_tokens=2000",), "sampling.max_tokens (2000) leaves less than 256 tokens for the prompt"),
        (("rollouts.max_tokens=1200",), "rollouts.max_tokens (1200 after a trace of 768)"),
        (('rl.rounds=["both"]',), "rl.rounds"),
        (("rl.clip=0.2",), "rl.clip: unknown setting"),
    ],
)
def test_couples_that_cannot_be_made(assignments: tuple[str, ...], words: str):
    with pytest.raises(SettingsError) as error:
        load(LongShort, "tiny", assignments)
    assert words in str(error.value)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"known: paper-.*, tiny"):
        load(Dto, "tinny")


def test_a_preset_file_with_bad_toml_names_the_line(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("seed = 1\nseed = = 2\n")
    with pytest.raises(SettingsError, match=r"mine\.toml: not valid TOML: .*line 2"):
        load(Dto, str(tmp_path / "mine.toml"))


def test_a_preset_is_utf_8_with_or_without_a_mark(tmp_path: Path):
    text = 'model = "modèle"\n'
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "mine.toml").write_text(text, encoding=encoding)
        assert load(Dto, str(tmp_path / "mine.toml")).model == "modèle"
    for encoding in ("utf-16", "latin-1", "utf-16-le"):
        (tmp_path / "mine.toml").write_text(text, encoding=encoding)
        with pytest.raises(SettingsError) as error:
            load(Dto, str(tmp_path / "mine.toml"))
        assert re.match(r".*mine\.toml: not (UTF-8; save the file as UTF-8|valid TOML)", str(error.value))
        assert "\n" not in str(error.value)


def test_one_column_of_a_known_data_set_can_be_overridden():
    gsm8k = DATASETS["openai/gsm8k"]
    given = ("problems.type=hub", "problems.name=openai/gsm8k")
    assert load(Dto, "tiny", given).problems.columns == gsm8k  # type: ignore[union-attr]
    changed = load(Dto, "tiny", (*given, "problems.columns.problem=q2"))
    assert changed.problems.columns == gsm8k.model_copy(update={"problem": "q2"})  # type: ignore[union-attr]
    assert Dto.model_validate_json(changed.model_dump_json()) == changed
    preset = load(Dto, "paper-r1-1.5b", ("problems.columns.problem=q2",)).problems
    assert preset.columns == DATASETS["EleutherAI/hendrycks_math"].model_copy(update={"problem": "q2"})  # type: ignore[union-attr]


def test_a_preset_can_override_one_column_of_a_known_data_set(tmp_path: Path):
    text = '[problems]\ntype = "hub"\nname = "openai/gsm8k"\n[problems.columns]\nlevel = "steps"\n'
    (tmp_path / "mine.toml").write_text(text)
    columns = load(Dto, str(tmp_path / "mine.toml"), ("problems.columns.problem=q2",)).problems.columns  # type: ignore[union-attr]
    assert columns == DATASETS["openai/gsm8k"].model_copy(update={"problem": "q2", "level": "steps"})


def sections(kind: type[BaseModel]) -> set[type[Settings]]:
    """`kind` and every settings section in it."""
    found = {kind} if issubclass(kind, Settings) else set()
    for field in kind.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and get_origin(part) is None and issubclass(part, BaseModel):
                found |= sections(part)
    return found


def parts(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of, unions and tags at any depth."""
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


ALL_SECTIONS = sorted(
    sections(MultiSeed) | sections(MarkerReport) | sections(TinyModel), key=lambda kind: kind.__name__
)


@pytest.mark.parametrize("kind", ALL_SECTIONS, ids=lambda kind: kind.__name__)
def test_what_a_section_leaves_out_exists_and_every_field_is_explained(kind: Any):
    assert kind.NOT_IN_CACHE_KEY.keys() <= kind.model_fields.keys()
    assert all(reason for reason in kind.NOT_IN_CACHE_KEY.values())


def test_servers_elsewhere_are_named_by_url_and_only_where_they_can_serve():
    chosen = load(Dto, "tiny", ('engine.endpoints=["http://a:8000", "https://b"]',))
    assert chosen.engine.endpoints == ("http://a:8000", "https://b")
    with pytest.raises(SettingsError, match=r"engine\.endpoints"):
        load(Dto, "tiny", ('engine.endpoints=["a:8000"]',))
    with pytest.raises(SettingsError, match=r"engine\.endpoints has no effect here"):
        load(TinyModel, "tiny", ('engine.endpoints=["http://a:8000"]',))


def test_settings_work_under_their_old_names_and_say_the_new_ones():
    given = ("engine.context=3000", "training.batch=8", "training.micro_batch=4", "training.lora.rank=8")
    with pytest.warns(RenamedSetting) as told:
        settings = load(Dto, "tiny", given)
    assert (settings.engine.max_model_len, settings.training.global_batch_size) == (3000, 8)
    assert settings.training.lora == Lora(r=8)
    assert "the setting context is called max_model_len now" in {str(one.message) for one in told}


def test_a_pipeline_works_under_its_old_name_and_says_the_new_one():
    values = load(MultiSeed, "dto").model_dump() | {"pipeline": "claims"}
    with pytest.warns(RenamedSetting, match="the pipeline claims is called multi-seed now"):
        assert MultiSeed.model_validate(values).pipeline == "multi-seed"


@pytest.mark.parametrize(("pipeline", "kind"), PIPELINES.items())
def test_each_pipeline_is_called_as_its_settings_say(pipeline: str, kind: type[Settings]):
    assert kind.model_fields["pipeline"].default == pipeline
    assert kind.model_fields["preset"].default in presets(kind)


def test_of_an_old_and_a_new_name_the_later_one_counts_and_sections_are_merged():
    class Outer(Settings):
        RENAMED: ClassVar[dict[str, str]] = {"old": "new"}
        new: Engine = Engine()

    with pytest.warns(RenamedSetting):
        made = Outer.model_validate({"new": {"seed": 5, "dtype": "bfloat16"}, "old": {"seed": 6}})
    assert (made.new.seed, made.new.dtype) == (6, "bfloat16")


def test_no_field_bears_an_old_name():
    """A subclass that overrides a renamed field under its old name would add a field that nothing reads."""
    kinds = [Settings]
    for kind in kinds:
        kinds += [one for one in kind.__subclasses__() if one not in kinds]
    assert {kind.__name__: found for kind in kinds if (found := kind.renamed().keys() & kind.model_fields.keys())} == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dtype", "half"], "is set by engine.dtype"),
        (["--max_model_len=9"], "is set by engine.max_model_len"),
        (["--max-model", "9"], "is set by engine.max_model_len"),  # vLLM takes unique beginnings of names
        (["--data-parallel-size", "2"], "is set by engine.replicas"),
        (["--host", "0.0.0.0"], "cannot be changed"),
        (["--trust-remote-code"], "cannot be changed"),
        (["--config", "other.yaml"], "cannot be changed"),
        (["--no-enable-lora"], "cannot be changed"),
        (["--max-cpu-loras", "8"], "cannot be changed"),
        (["--disable-log-stats"], "cannot be changed"),
        (["--device-ids", "3"], "cannot be changed"),
        (["--nnodes", "2"], "cannot be changed"),
        (["--data-parallel-rank", "1"], "cannot be changed"),
        (["-tp", "2"], "write the long name"),
        (["fp8"], "write the long name"),
        (["--"], "write the long name"),
    ],
)
def test_arguments_of_vllm_that_a_run_relies_on_are_refused(args: list[str], message: str):
    with pytest.raises(SettingsError, match=message):
        load(Dto, "tiny", (f"engine.vllm_args={json.dumps(args)}",))


def test_arguments_of_vllm_that_change_its_numbers_make_another_model():
    def numerics(*args: str) -> str:
        return load(Dto, "tiny", (f"engine.vllm_args={json.dumps(args)}",)).engine.numerics

    assert numerics("--max-num-batched-tokens", "8192", "--enforce-eager") == "float32"
    assert numerics("--kv-cache-dtype", "fp8", "--enforce-eager", "--quantization=fp8") == (
        "float32 --kv-cache-dtype fp8 --quantization=fp8"
    )
