import pytest

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.load import SettingsError, load
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed
from conf.prompts import DEFAULT_INSTRUCTIONS, Harmony, Prompt, Tags
from conf.sampling import Sampling

PIPELINES = [Dto, CotDistillation, LongShort, MarkerReport]
THINK = ("prompt.thinking.open=[THINK]", "prompt.thinking.close=[/THINK]")
EXIT = r"probing.exit_text='Enough.[/THINK]\boxed{'"


@pytest.mark.parametrize("kind", PIPELINES)
def test_default_instructions_apply_to_all_models_but_the_bundled_one(kind: type[Settings]):
    assert load(kind, "tiny").prompt == Prompt()  # type: ignore[attr-defined]
    other = load(kind, "tiny", ("model=owner/name", "prompt.system=Be exact."))
    assert other.prompt == Prompt(system="Be exact.", **DEFAULT_INSTRUCTIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        (Dto, "paper-r1-1.5b"),
        (CotDistillation, "paper-7b"),
        (LongShort, "paper-llama3.1-8b"),
        (LongShort, "paper-qwen2.5-7b"),
    ],
)
def test_paper_presets_ask_for_a_box(kind: type[Settings], preset: str):
    assert "\\boxed{}" in load(kind, preset).prompt.instruction  # type: ignore[attr-defined]


def test_explicit_prompts_override_defaults_and_are_saved():
    silent = load(Dto, "tiny", ("model=owner/name", "prompt.instruction=''"))
    assert (silent.prompt.instruction, silent.prompt.instruction_choices) == (
        "",
        DEFAULT_INSTRUCTIONS["instruction_choices"],
    )
    explicit = load(Dto, "tiny", ("prompt.instruction=Think.",))
    assert explicit.prompt.instruction == "Think."
    for settings in (silent, explicit, load(Dto, "paper-r1-1.5b")):
        assert Dto.model_validate_json(settings.model_dump_json()) == settings
    claims = load(MultiSeed, "dto", ("dto.model=owner/name",))
    assert claims.of.prompt.instruction == DEFAULT_INSTRUCTIONS["instruction"]


def test_thinking_format_is_selected_by_type():
    assert load(Dto, "tiny", (*THINK, EXIT)).prompt.thinking == Tags(open="[THINK]", close="[/THINK]")
    harmony = load(
        MarkerReport, "tiny", ("prompt.thinking.type=harmony", "prompt.template_arguments.reasoning_effort=high")
    )
    assert harmony.prompt.thinking == Harmony()
    assert harmony.prompt.template_arguments == {"reasoning_effort": "high"}


@pytest.mark.parametrize(
    ("kind", "assignments", "words"),
    [
        (Dto, THINK, "probing.exit_text ('Now the answer is clear.\\n</think>"),
        (Dto, THINK, "it must hold '[/THINK]', as in 'Now the answer is clear.\\n[/THINK]\\nThe answer is"),
        (CotDistillation, THINK, "probing.exit_text"),
        (LongShort, (*THINK, "early_stop={}"), "early_stop.probing.exit_text"),
        (Dto, ("probing.exit_text=So",), "does not end the thinking: it must hold '</think>'"),
        (Dto, ("prompt.thinking.close=<think>",), "open and close are both '<think>'"),
        (Dto, ("prompt.thinking.type=xml",), "prompt.thinking.type: must be one of 'harmony', 'tags'"),
        (Dto, ("prompt.thinking.type=harmony", "prompt.thinking.close=x"), "prompt.thinking.close: unknown setting"),
        (Dto, ("prompt.thinking.close=''",), "prompt.thinking.close: String should have at least 1 character"),
        (Dto, ("prompt.instructions=x",), "did you mean 'instruction'?"),
        (Dto, ("prompt=no",), "prompt: "),
        (Dto, ("sampling.top_k=-1",), "sampling.top_k"),
        (Dto, ("sampling.min_p=1.5",), "sampling.min_p"),
        (Dto, ("engine.seed=-1",), "engine.seed"),
    ],
)
def test_each_mistake_is_reported_in_one_line(kind: type[Settings], assignments: tuple[str, ...], words: str):
    with pytest.raises(SettingsError) as error:
        load(kind, "tiny", assignments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_engine_seed_defaults_to_the_run_seed():
    assert load(Dto, "tiny", ("seed=7",)).engine.seed == 7
    assert load(Dto, "tiny", ("seed=7", "engine.seed=3")).engine.seed == 3
    assert load(Dto, "tiny", (f"seed={2**32 + 5}",)).engine.seed == 5
    assert load(LongShort, "tiny", ("seed=7",)).engine.servers_per_gpu == 2


def test_request_omits_neutral_parameters():
    assert Sampling().request == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 768}
    assert Sampling(top_k=20, min_p=0.05).request == Sampling().request | {"top_k": 20, "min_p": 0.05}
