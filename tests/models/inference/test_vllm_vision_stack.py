"""The real vLLM server with images: exact ids, shared cache blocks, images encoded once, weights swapped and proven."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import orjson
import pytest
import torch
from PIL import Image

from conf.engine import Engine
from conf.sampling import Sampling
from models.checkpoints.checkpoint import TINY_VISION_MODEL, Checkpoint
from models.checkpoints.files import SYNC_CHECK_FILE
from models.checkpoints.images import PromptImages
from models.inference.connections import client
from models.inference.dispatcher import JSON, path_and_body
from models.inference.engine import FailedRequest, Finished, Request, ScorableText
from models.inference.own_servers import OwnServers
from models.inference.sync_check import SyncCheck
from models.inference.vllm_server import VllmServer, block_size
from models.training.weights import load_model, log_probs, save_processing
from reasoning.records import ImagePart, Problem, TextPart
from reasoning.token_ids import TokenIds
from tests.vision import problems, text_of

GREEDY = Sampling(temperature=0, samples=1, max_tokens=1)
PLAIN, COUNTING = "models.inference.vllm_worker.WeightSwap", "tests.vision_worker.CountingWorker"
THOUGHT = "Start with red7.\n1:7+ blue5=12.\n2:12- white3=9.\nThat makes 9.\n" * 4


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_VISION_MODEL)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    engine = OwnServers(Engine(max_num_seqs=16), tmp_path_factory.mktemp("vllm") / "log")
    plain = VllmServer._command

    def counting(self: VllmServer, model: Checkpoint) -> list[str]:
        return [COUNTING if part == PLAIN else part for part in plain(self, model)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VllmServer, "_command", counting)
        yield engine
    engine.close()


def sample(engine: OwnServers, model: Checkpoint, requests: list[Request]) -> list[Finished | FailedRequest]:
    events: SimpleQueue[Any] = SimpleQueue()
    with engine.session(model, events.put) as session:
        for request_id, request in enumerate(requests):
            session.submit(request_id, request, request_id)
        return sorted((events.get() for _ in requests), key=lambda event: event.request_id)


def probe(model: Checkpoint, problem: Problem, tokens: int, images: PromptImages | None = None) -> Request:
    """A prompt with the first `tokens` tokens of a thought."""
    prefix = model.prompt_ids(problem) + model.encode(THOUGHT)[:tokens]
    return Request(prefix, GREEDY, 1, images=images or model.images_of(problem))


def post(engine: OwnServers, path: str, body: dict[str, Any]) -> httpx.Response:
    with client(engine.servers[0].url) as http:
        return http.post(path, content=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=JSON)


def encoded(engine: OwnServers) -> int:
    return int(post(engine, "/collective_rpc", {"method": "encoded_images"}).json()["results"][0])


def drawn(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77 if mode == "L" else (9, 120, 200)).save(file, "PNG")
    return file.getvalue()


def test_server_and_processor_have_the_same_ids(engine: OwnServers, tiny: Checkpoint):
    """Of pictures of many sizes, which are resized to many numbers of tokens, alone and together."""
    sample(engine, tiny, [probe(tiny, problems(1)[0], 0)])
    sizes = [(84, 56), (28, 28), (1, 1), (300, 40), (57, 211), (2000, 1500)]
    shown = [(drawn(size),) for size in sizes] + [tuple(drawn(size) for size in sizes[:3]), (drawn((50, 50), "L"),)]
    for images in shown:
        parts = (*(ImagePart() for _ in images), TextPart(text="Start with red. How many?"))
        problem = Problem(id="p", prompt=parts, images=images, answer="1")
        ids = tiny.prompt_ids(problem)
        path, body = path_and_body(ScorableText(ids, tiny.images_of(problem)), {"max_tokens": 1})
        reply = post(engine, path, {"model": engine.servers[0].name, "return_token_ids": True, **body})
        assert reply.json()["prompt_token_ids"] == ids.tolist()


def test_log_probs_are_those_of_the_weights_and_depend_on_the_image(engine: OwnServers, tiny: Checkpoint):
    first, second = problems(2, (3,))
    texts = [text_of(tiny, first, THOUGHT), text_of(tiny, second, THOUGHT)]
    texts.append(texts[0]._replace(images=texts[1].images))
    found = list(engine.log_probs(tiny, texts))
    for text, served in zip(texts, found, strict=True):
        wanted = log_probs(TINY_VISION_MODEL, text.token_ids.tolist(), None, text.images)
        assert served == pytest.approx(wanted, abs=1e-3)
    assert found[0] != pytest.approx(found[2], abs=0.1)


def test_prefixes_of_one_image_share_their_blocks(engine: OwnServers, tiny: Checkpoint):
    one, other = problems(4, (4,))[2:]
    size, prompt = block_size(), len(tiny.prompt_ids(one))
    computed = []
    for tokens in (20, 52, 84, 116):
        with_image = probe(tiny, one, tokens)
        computed.append(computed_by(engine, tiny, with_image))
    # Whole blocks of the prefix before are found again, as long as it grows by a block.
    assert computed == [prompt + 20, *(prompt + n - size * ((prompt + n - 32) // size) for n in (52, 84, 116))]
    foreign = probe(tiny, one, 116, tiny.images_of(other))
    assert computed_by(engine, tiny, foreign) == prompt + 116


def computed_by(engine: OwnServers, model: Checkpoint, request: Request) -> int:
    before = engine.computed_prompt_tokens
    sample(engine, model, [request])
    return engine.computed_prompt_tokens - before


def test_probes_encode_each_image_once(engine: OwnServers, tiny: Checkpoint):
    asked = problems(12, (5,))[4:]
    encoded(engine)
    before = encoded(engine)
    for tokens in (0, 30, 60, 90):
        sample(engine, tiny, [probe(tiny, problem, tokens) for problem in asked])
    several = [Request(tiny.prompt_ids(problem), Sampling(samples=5, max_tokens=5), 5) for problem in asked]
    sample(
        engine,
        tiny,
        [Request(r.prompt_ids, r.sampling, 5, (), tiny.images_of(p)) for r, p in zip(several, asked, strict=True)],
    )
    assert encoded(engine) - before == len(asked)


def test_no_completion_holds_a_placeholder(engine: OwnServers, tiny: Checkpoint):
    """At a temperature at which one in a hundred tokens would be one."""
    wild = Sampling(temperature=2, top_p=1, samples=8, max_tokens=60)
    requests = [Request(tiny.prompt_ids(p), wild, 8, images=tiny.images_of(p)) for p in problems(10)]
    tokens = [t for one in sample(engine, tiny, requests) for c in one.completions for t in c.token_ids]  # type: ignore[union-attr]
    assert len(tokens) > 3000
    assert len(set(tokens)) > 300
    assert not set(tokens) & set(tiny.forbidden_ids)


def test_a_broken_image_fails_alone(engine: OwnServers, tiny: Checkpoint):
    good = problems(3)
    broken = PromptImages((b"no image",), tiny.image_processor.token_id)
    requests = [probe(tiny, p, 0) for p in good] + [probe(tiny, good[0], 0, broken)]
    *fine, failed = sample(engine, tiny, requests)
    assert all(isinstance(one, Finished) for one in fine)
    assert isinstance(failed, FailedRequest)


def perturbed(folder: Path, step: float, tower_alone: bool = False) -> Checkpoint:
    """The model with changed weights, and the sync check that a trainer writes."""
    torch.manual_seed(0)
    model = load_model(TINY_VISION_MODEL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not tower_alone or "visual" in name:
                weight += step * weight.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
    tiny = Checkpoint.open(TINY_VISION_MODEL)
    save_processing(TINY_VISION_MODEL, tiny.tokenizer, folder)
    text = text_of(tiny, problems(1, (2,))[0], THOUGHT[:40])
    check = SyncCheck.of(text, log_probs(folder, text.token_ids.tolist(), None, text.images))
    (folder / SYNC_CHECK_FILE).write_text(check.model_dump_json(exclude_none=True))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("tower_alone", [False, True])
def test_swapped_weights_are_proven_with_an_image(
    engine: OwnServers, tiny: Checkpoint, tmp_path: Path, tower_alone: bool
):
    """Also those of the vision tower alone, and images that were encoded with the old one are encoded again."""
    text = text_of(tiny, problems(2, (2,))[1], THOUGHT[:60])
    (before,) = engine.log_probs(tiny, [text])
    pid = engine.servers[0].pid
    trained = perturbed(tmp_path / "trained", 0.3, tower_alone)
    (after,) = engine.log_probs(trained, [text])
    assert after == pytest.approx(log_probs(trained.folder, text.token_ids.tolist(), None, text.images), abs=1e-3)
    assert after != pytest.approx(before, abs=0.01)
    assert engine.servers[0].pid == pid


def test_a_tower_that_was_not_swapped_is_noticed(engine: OwnServers, tiny: Checkpoint, tmp_path: Path):
    """The sync check of other weights, as if the tower had kept its own."""
    lying = perturbed(tmp_path / "lying", 0.3, tower_alone=True)
    honest = tmp_path / "honest"
    shutil.copytree(lying.folder, honest)
    shutil.copy(TINY_VISION_MODEL / "model.safetensors", honest)
    with pytest.raises(Exception, match="differ from the trainer's"):
        list(engine.log_probs(Checkpoint.open(honest), [text_of(tiny, problems(1)[0], "Start")]))


def test_ids_without_images_are_as_before(engine: OwnServers, tiny: Checkpoint):
    plain = Request(TokenIds(tiny.encode("<|user|>How many?<|assistant|>")), GREEDY, 1)
    (found,) = sample(engine, tiny, [plain])
    assert isinstance(found, Finished)
