"""The paper preset with images on a shape model of Qwen2.5-VL, with the real vLLM and TRL.

Rows stand in the columns of LLaVA-CoT-100k, MathVista, MathVision, MMStar and MMMU; their pictures are boards of the
bundled world, of many sizes. The model's texts are scripted, so figures say nothing about behaviour.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conf.cot_distillation import CotDistillation
from conf.load import load
from flows.cot_distillation import cot_distillation
from tests.bigrams import ANSWER, teach
from tests.flows.real_runs import FLOAT32, learning, stages
from tests.models.chat import Answer, Chat
from tests.vision import problems
from tests.vision_shape import make_vision_shape

pytestmark = pytest.mark.usefixtures("prefect")
REASONING = "I look at the picture. There are two boxes, so we count them one after the other. " * 6
REPLY = (
    "<SUMMARY> I count the boxes. </SUMMARY>\n\n<CAPTION> Boxes. </CAPTION>\n\n<REASONING> {} </REASONING>\n\n"
    "<CONCLUSION> {} </CONCLUSION>"
)
TEXTS = [
    *((context, f"The answer is \\boxed{{{answer}}}.<|im_end|>") for context in ("assistant\n",) for answer in "23"),
    *(("<think>", f"We count.\n</think>\n\nThe answer is \\boxed{{{answer}}}.<|im_end|>") for answer in "23"),
]


def picture(number: int, size: tuple[int, int], form: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    board = Image.open(io.BytesIO(problems(number + 1)[number].images[0]))
    board.resize(size).convert(mode).save(file, form)
    return file.getvalue()


def conversation(question: str, reply: str, **row: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}], **row}


@pytest.fixture
def training(tmp_path: Path) -> str:
    """A source of rows as LLaVA-CoT-100k has them: eight to train on, and six that cannot be used."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        form = ("PNG", "JPEG")[number % 2]
        (folder / f"{number}.{form.lower()}").write_bytes(picture(number, (120 + 40 * number, 90), form))
    (folder / "empty.png").write_bytes(b"")
    good = [
        conversation(
            f"How many boxes of picture {number} are large?",
            REPLY.format(REASONING, ANSWER),
            id=f"good-{number}",
            image=f"{number}.{('png', 'jpeg')[number % 2]}",
        )
        for number in range(8)
    ]
    bad = [
        conversation("How many a?", REPLY.format(REASONING, ANSWER), id="no-image"),
        conversation("How many b?", REPLY.format(REASONING, ANSWER), id="missing", image="nothing.png"),
        conversation("How many c?", REPLY.format(REASONING, ANSWER), id="empty", image="empty.png"),
        conversation("How many d?", REPLY.format(REASONING, ANSWER), id="outside", image="../../secret.png"),
        conversation("How many e?", "It is 2.", id="no-tags", image="0.png"),
        conversation(
            "What is it?", REPLY.format(REASONING, "A box of a colour that I like."), id="prose", image="0.png"
        ),
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in good + bad))
    columns = (
        '{problem="conversations.0.value", answer="conversations.1.value", answer_is="conclusion", images="image"}'
    )
    images = f'{{folder="{folder}"}}'
    return f'{{type="file", path="{path}", columns={columns}, images={images}, max_invalid_fraction=0.7}}'


def benchmark(path: Path, rows: list[dict[str, Any]], columns: str) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return f'{{type="file", path="{path}", columns={{{columns}}}}}'


def embedded(number: int, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    """An image as the hub's Parquet files hold it."""
    return {"bytes": picture(number, size, **options), "path": f"images/{number}.png"}


def benchmarks(folder: Path) -> dict[str, str]:
    """One or two rows of each, in its own columns."""
    vista = {"question": "How many?", "decoded_image": embedded(8, (200, 300)), "answer": "2", "choices": None}
    chosen = {"question": "Which?", "decoded_image": embedded(9, (64, 64)), "answer": "No", "choices": ["Yes", "No"]}
    vision = {"question": "Count in <image1>.", "options": [], "decoded_image": embedded(10, (90, 60)), "answer": "2"}
    star = {"index": 4, "question": "How many? Options: A: 2, B: 3", "image": picture(11, (500, 400)), "answer": "A"}
    mmmu = {"id": "m1", "question": "<image 1> or <image 2>?", "options": "['one', 'two']", "answer": "B"}
    mmmu |= {"image_1": embedded(12, (70, 70)), "image_2": embedded(13, (70, 70), mode="RGBA"), "image_3": None}
    return {
        "MathVista": benchmark(
            folder / "vista.parquet",
            [vista | {"pid": "1"}, chosen | {"pid": "2"}],
            'id="pid", problem="question", answer_is="choice", choices="choices", images="decoded_image"',
        ),
        "MathVision": benchmark(
            folder / "vision.parquet", [vision], 'id="", problem="question", choices="options", images="decoded_image"'
        ),
        "MMStar": benchmark(folder / "star.parquet", [star], 'id="index", problem="question", images="image"'),
        "MMMU": benchmark(
            folder / "mmmu.parquet",
            [mmmu],
            'problem="question", choices="options", images=["image_1", "image_2", "image_3"]',
        ),
    }


def assist(body: dict[str, Any], number: int) -> Answer:
    """Rates, grades and compresses, and insists on seeing the picture."""
    _ = number
    parts = body["messages"][1]["content"]
    assert [part["type"] for part in parts][-1] == "text"
    assert all(part["image_url"]["url"].startswith("data:image/") for part in parts[:-1])
    assert len(parts) > 1
    schema = body["response_format"]["json_schema"]["name"]
    if schema == "Level":
        return Answer(json.dumps({"level": 1 + len(parts[-1]["text"]) % 7}))
    if schema == "Grades":
        return Answer(json.dumps(dict.fromkeys(("clarity", "completeness", "correctness", "redundancy"), 4)))
    return Answer(json.dumps({"thinking": "We count."}))


def test_the_paper_preset_with_images(training: str, real_tokenizers: Path, chat: Callable[..., Chat], tmp_path: Path):
    model = teach(make_vision_shape(tmp_path / "model", real_tokenizers), TEXTS)
    server, sets = chat(assist), benchmarks(tmp_path)
    changes = (
        f"model={model}",
        f"problems={training}",
        "variants=['sft']",
        *(f"benchmarks.{name}={source}" for name, source in sets.items()),
        "benchmark_sampling={samples=2, max_tokens=24}",
        "judging.problems=1",
        f"llm.url={server.url}",
        *learning("sft", "dpo"),
        FLOAT32,
        "engine.max_num_seqs=16",
        f"storage.root={tmp_path}",
    )
    report = json.loads(cot_distillation(settings=load(CotDistillation, "paper-vl-7b", changes)).read_text())
    lines = stages(report)
    assert lines["load-file"]["rows_in"] == 14
    read = next(line for line in report["ledger"] if line["stage"] == "load-file" and line["rows_in"] == 14)
    assert read["dropped"] == {
        "no-image": 1,
        "missing-image": 1,
        "broken-image": 1,
        "outside-folder": 1,
        "no-answer": 2,
    }
    assert lines["read-file-traces"]["rows_out"] == 8
    assert lines["compress-by-llm"]["rows_out"] > 0
    assert lines["train-sft"]["rows_in"] > 0
    assert lines["train-dpo"]["rows_in"] > 0
    assert [model["name"] for model in report["models"]] == ["base", "sft+dpo", "sft"]
    assert list(report["others"]) == [*list(sets)[1:], "MathVista, with other images"]
    assert any("has no thinking tags: as the base" in warning for warning in report["warnings"])
