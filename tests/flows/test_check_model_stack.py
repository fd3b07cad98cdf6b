"""`check-model` on the bundled model and on invalid arguments."""

import json
import shutil
from pathlib import Path

import pytest

from flows.__main__ import main
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint


def test_it_prints_how_a_run_uses_the_bundled_model(capsys: pytest.CaptureFixture[str]):
    assert main(["check-model", "tiny"]) == 0
    output = capsys.readouterr().out
    for line in (
        Checkpoint.open(TINY_MODEL).fingerprint,
        "<|user|>Ann has 12 apples.\\n\n  How many apples now?<|assistant|><think>\\n",
        "(17 tokens; control characters are escaped)",
        "close        '</think>': 1 token [471]",
        "opened by    the chat template",
        "0 '<|endoftext|>'  (appended to training rows)",
        # 2 × 4 layers × 2 key-value heads × 32 × 4 bytes = 2,048; × 2,048 × 256 = 1.07 GB
        "2,048 × engine.max_model_len 2,048 × engine.max_num_seqs 256",
        "1.07 GB  KV cache, every sequence as long as can be",
        "12.4 MB  training of all weights",  # 16 × 772,224
    ):
        assert line in output
    assert output.endswith("warnings\n  none\n")


def test_it_uses_the_settings_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 463]}))
    settings = [
        "--pipeline",
        "cot-distillation",
        "--preset",
        "paper-7b",
        "--set",
        "prompt.template_arguments.loud=true",
    ]
    assert main(["check-model", str(tmp_path / "model"), *settings]) == 0
    output = capsys.readouterr().out
    for line in (
        "Please reason step by step, and put your final answer within \\\\boxed{}.<|assistant|><think>\\n",
        "463 '<|pad|>'",
        "served in bfloat16  = 772,224 parameters × 2",
        "training with [sft]:",
        "training with [dpo]:",
        "engine.max_model_len (16384) is over config.json's max_position_embeddings (2048)",
        "prompt.template_arguments: the template does not read loud",
    ):
        assert line in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["../../../nowhere"], "no such folder"),
        (["a\0b"], "no such folder"),
        (["/tmp/x\ny"], "no such folder"),
        (['x"\n[engine]\nseed = 3'], "no such folder"),
        (["tiny", "--preset", "none"], "unknown preset 'none'"),
        (["tiny", "--set", "prompt.thinking.close=[/THINK]"], "probing.exit_text"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check-model", *arguments]) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
