"""`brevity doctor`: every verdict on facts by hand; the facts from fakes of nvidia-smi and of servers."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.engine import Engine
from conf.llm import Llm
from conf.load import load
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed
from conf.workers import Workers
from flows.cli import main
from flows.doctor import facts
from flows.doctor.checks import (
    Builds,
    Finding,
    Gpu,
    Gpus,
    GpuUse,
    State,
    Version,
    check_disk,
    check_driver,
    check_gpu_is_free,
    check_gpu_memory,
    check_places,
    check_rollout_store,
    check_workers,
    size_text,
    split_message,
    visible_gpus,
)
from flows.doctor.services import Reply, check_hub, check_llm, check_prefect, check_server
from flows.needs import data_sets, disk_bytes, gpu_uses, llms, model_names, trained_models
from models import file_systems
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.file_systems import Mount
from models.inference import remote_servers
from tests.models.fakes import fake_checkpoint
from tests.models.inference.test_dispatcher import Server

OK, WARNING, ERROR = State.OK, State.WARNING, State.ERROR
ROOT = Path(__file__).parents[2]
H100 = Gpu(0, "GPU-aa11", "NVIDIA H100", "550.54", 80e9, 79e9)
A10 = Gpu(1, "GPU-bb22", "NVIDIA A10", "550.54", 24e9, 24e9)
CPU_BUILD = Builds("2.13.0+cpu", None, vllm_on_cpu=True)
GPU_BUILD = Builds("2.13.0+cu130", (13, 0), vllm_on_cpu=False)


def matches(finding: Finding | None, state: State, found: str, remedy: str = "") -> bool:
    """An ok finding has nothing to do."""
    assert finding is not None
    assert found in finding.found, finding
    assert remedy in finding.remedy, finding
    assert finding.state is state, finding
    return bool(finding.remedy) == (state is not OK)


def with_driver(cuda: Version | None, *devices: Gpu) -> Gpus:
    return Gpus(devices or (H100,), cuda)


@pytest.mark.parametrize(
    ("gpus", "builds", "is_usable", "is_bundled", "state", "found", "remedy"),
    [
        (Gpus(), CPU_BUILD, False, True, OK, "no NVIDIA GPU; the bundled model needs none", ""),
        (Gpus(), CPU_BUILD, False, False, WARNING, "the run samples and trains on the CPU", "a machine with a GPU"),
        (Gpus(), GPU_BUILD, False, True, ERROR, "vLLM's GPU build", "make setup ACCELERATOR=cpu"),
        (Gpus(hidden=2), CPU_BUILD, False, True, OK, "CUDA_VISIBLE_DEVICES hides 2 GPUs", ""),
        (Gpus(hidden=2), CPU_BUILD, False, False, WARNING, "hides 2 GPUs", "unset CUDA_VISIBLE_DEVICES"),
        (Gpus(problem="nvidia-smi fails; restart"), GPU_BUILD, False, True, ERROR, "nvidia-smi fails", "restart"),
        (with_driver((13, 0)), CPU_BUILD, False, True, ERROR, "torch 2.13.0+cpu is a build without CUDA", "=gpu"),
        (
            with_driver((13, 0)),
            Builds("2.13.0", (13, 0), vllm_on_cpu=True),
            True,
            False,
            ERROR,
            "vLLM is a build without CUDA: the run would use the CPU",
            "conf/requirements/gpu.txt",
        ),
        (
            with_driver((12, 4)),
            GPU_BUILD,
            False,
            False,
            ERROR,
            "driver 550.54 (CUDA 12.4) is too old for torch 2.13.0+cu130 (CUDA 13.0)",
            "for CUDA 13.0 or newer, or install torch and vLLM for CUDA 12.4",
        ),
        (with_driver((13, 0)), GPU_BUILD, False, False, ERROR, "reaches no GPU", "CUDA_VISIBLE_DEVICES"),
        (with_driver(None), GPU_BUILD, False, False, ERROR, "reaches no GPU", "update the NVIDIA driver"),
        (
            with_driver((13, 0)),
            Builds("2.13.0", (13, 2), vllm_on_cpu=False),
            True,
            False,
            WARNING,
            "kernels compiled at run time may fail",
            "CUDA 13.2",
        ),
        (with_driver((13, 0)), GPU_BUILD, True, False, OK, "1 × NVIDIA H100, driver 550.54 (CUDA 13.0)", ""),
        (with_driver((13, 1)), GPU_BUILD, True, False, OK, "torch 2.13.0+cu130 (CUDA 13.0)", ""),
        (with_driver(None, H100, A10), GPU_BUILD, True, False, OK, "2 × NVIDIA H100, NVIDIA A10, driver 550.54;", ""),
    ],
)
def test_driver_against_builds(
    gpus: Gpus, builds: Builds, is_usable: bool, is_bundled: bool, state: State, found: str, remedy: str
):
    assert matches(check_driver(gpus, builds, is_usable, is_bundled), state, found, remedy)


@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        (None, (H100, A10)),
        ("", ()),
        ("-1", ()),
        ("1", (A10,)),
        ("1, 0", (A10, H100)),
        ("GPU-bb", (A10,)),
        ("0,-1", (H100,)),
        ("MIG-cc33", (H100, A10)),
    ],
)
def test_visible_gpus(variable: str | None, visible: tuple[Gpu, ...]):
    assert visible_gpus([H100, A10], variable) == visible


@pytest.mark.parametrize(
    ("least", "usual", "share", "state", "found", "remedy"),
    [
        # 0.5 × 80 GB = 40 GB of room; tight above 36 GB
        (40e9, 40e9, 0.5, WARNING, "40 GB by estimate, of 40 GB, 0.5 of 80 GB: tight", "less"),
        (40.1e9, 40.1e9, 0.5, ERROR, "40.1 GB by estimate, of 40 GB", "less"),
        (36e9, 36e9, 0.5, OK, "36 GB by estimate", ""),
        (36.1e9, 36.1e9, 0.5, WARNING, "tight", "less"),
        (20e9, 41e9, 0.5, WARNING, "as set it may take 41 GB", "fewer rows"),
        (20e9, 41e9, 1.0, OK, "20 GB by estimate, of 80 GB", ""),
    ],
)
def test_gpu_memory(least: float, usual: float, share: float, state: State, found: str, remedy: str):
    finding = check_gpu_memory(GpuUse("[training]", least, usual, share, "less", "fewer rows"), 80e9)
    assert finding.check == "GPU memory: [training]"
    assert matches(finding, state, found, remedy)


def test_memory_that_others_use():
    # 0.85 × 80 GB = 68 GB
    busy = check_gpu_is_free(H100._replace(free=60e9), 0.85)
    assert matches(busy, WARNING, "60 GB of GPU 0 are free; vLLM asks for 68 GB", "gpu_memory_utilization")
    assert check_gpu_is_free(H100, 0.85) is None
    assert check_gpu_is_free(H100._replace(free=None), 0.85) is None


def test_the_smallest_gpu_counts():
    assert Gpus((H100, A10)).smallest == 24e9
    assert Gpus((H100._replace(total=None),)).smallest is None


@pytest.mark.parametrize(
    ("free", "needed", "state", "found"),
    [
        (9.9e9, 10e9, ERROR, "9.9 GB free at /data; checkpoints and the trainer's state take 10 GB by estimate"),
        (10e9, 10e9, WARNING, "tight"),
        (19.9e9, 10e9, WARNING, "tight"),
        (20e9, 10e9, OK, "20 GB free"),
    ],
)
def test_disk(free: float, needed: float, state: State, found: str):
    assert matches(check_disk(Path("/data"), free, needed), state, found, "storage.root" if state is not OK else "")


def test_a_disk_with_unknown_need():
    finding = check_disk(Path("/data"), 9e9, None)
    assert (finding.state, finding.found) == (
        WARNING,
        "9 GB free at /data; the need is unknown without the model's size",
    )


def test_the_rollout_store():
    url = "sqlite:////home/runs/rollouts.sqlite"
    on_nfs = check_rollout_store(url, Mount("server:/home", "/home", "nfs4"))
    assert matches(
        on_nfs, ERROR, "is on /home (nfs4, a network file system)", "set storage.rollout_store to a PostgreSQL"
    )
    assert matches(check_rollout_store(url, None), OK, url)


@pytest.mark.parametrize(
    ("models", "sets", "has_token", "is_offline", "state", "found", "remedy"),
    [
        ([], [], False, True, OK, "nothing is needed", ""),
        (["a/b"], ["c/d"], True, True, ERROR, "HF_HUB_OFFLINE is set, and these are not here: a/b, c/d", "unset"),
        ([], ["c/d"], False, False, WARNING, "no token, needed for gated ones of c/d", "HF_TOKEN"),
        (["a/b"], [], True, False, OK, "a token is there; needed: a/b", ""),
    ],
)
def test_hub(
    models: list[str], sets: list[str], has_token: bool, is_offline: bool, state: State, found: str, remedy: str
):
    assert matches(check_hub(models, sets, has_token, is_offline), state, found, remedy)


@pytest.mark.parametrize(
    ("served", "fingerprint", "wrong", "state", "found", "remedy"),
    [
        (["f00d"], "f00d", "", OK, "serves the base model", ""),
        (["gpt"], "f00d", "", ERROR, "serves gpt, not this run's base model", "--served-model-name f00d"),
        ([], "f00d", "", ERROR, "serves nothing", "--served-model-name f00d"),
        (None, "f00d", "", ERROR, "not reachable", "start the server"),
        (["gpt"], None, "", WARNING, "serves gpt; the base model is not here", "brevity fingerprint"),
        (None, "f00d", "it rejects the API key; set KEY", ERROR, "it rejects the API key", "set KEY"),
    ],
)
def test_servers(
    served: Sequence[str] | None, fingerprint: str | None, wrong: str, state: State, found: str, remedy: str
):
    finding = check_server("http://ann:s3cret@node1:8000", served, fingerprint, wrong)
    assert finding.check == "endpoint http://***@node1:8000"
    assert matches(finding, state, found, remedy)


LLM = Llm(url="http://llm/v1", model="gpt-4o-mini", key_variable="MY_KEY")


@pytest.mark.parametrize(
    ("reply", "has_key", "state", "found", "remedy"),
    [
        (Reply(200, '{"data": [{"id": "gpt-4o-mini"}]}'), True, OK, "serves gpt-4o-mini", ""),
        (Reply(200, '{"data": [{"id": "models/gpt-4o-mini"}]}'), True, OK, "serves gpt-4o-mini", ""),
        (Reply(200, '{"data": [{"id": "other"}]}'), True, WARNING, "has no gpt-4o-mini", "correct llm.model"),
        (Reply(200, "<html>"), True, WARNING, "lists no models (status 200)", "correct llm.url"),
        (Reply(404, ""), True, WARNING, "lists no models (status 404)", "correct llm.url"),
        (Reply(503, ""), True, WARNING, "lists no models (status 503)", "correct llm.url"),
        (Reply(401, "no"), True, ERROR, "refuses the key in MY_KEY", "set MY_KEY"),
        (Reply(403, "no"), False, ERROR, "asks for a key; MY_KEY is not set", "set MY_KEY"),
        (Reply(0, "refused"), True, ERROR, "not reachable (refused)", "correct llm.url"),
    ],
)
def test_llms(reply: Reply, has_key: bool, state: State, found: str, remedy: str):
    assert matches(check_llm(LLM, reply, has_key), state, found, remedy)


HEALTHY = Reply(200, "true")


@pytest.mark.parametrize(
    ("health", "version", "state", "found", "remedy"),
    [
        (HEALTHY, Reply(200, '"3.9.4"'), OK, "runs 3.9, the client is 3.9", ""),
        (HEALTHY, Reply(200, '"3.10.0"'), OK, "runs 3.10", ""),
        (HEALTHY, Reply(200, '"3.8.9"'), WARNING, "runs 3.8, the client is 3.9: older", "to 3.9 or newer"),
        (HEALTHY, Reply(200, '"2.20.1"'), ERROR, "do not work together", "a server of 3.x"),
        (HEALTHY, Reply(200, '"4.0.0"'), ERROR, "do not work together", "a server of 3.x"),
        (HEALTHY, Reply(404, ""), OK, "tells no version", ""),
        (Reply(401, ""), Reply(401, ""), ERROR, "refuses this client (status 401)", "PREFECT_API_KEY"),
        (Reply(404, ""), Reply(404, ""), ERROR, "does not answer /health (status 404)", "PREFECT_API_URL"),
        (Reply(0, "refused"), Reply(0, "refused"), ERROR, "does not answer /health (refused)", "prefect server start"),
    ],
)
def test_prefect(health: Reply, version: Reply, state: State, found: str, remedy: str):
    assert matches(check_prefect("http://node1:4200/api", health, version, "3.9.1"), state, found, remedy)


def test_texts():
    assert [size_text(size) for size in (21.6e6, 3.554e9, 81e9, 1234e9)] == ["21.6 MB", "3.55 GB", "81 GB", "1,234 GB"]
    assert split_message("x: no such folder; name one; or another") == ("x: no such folder; name one", "or another")
    assert split_message("it fails") == ("it fails", "")


# The fake checkpoint: 5 × 8 embedding; in `two_matrices` also an 8 × 8 one. One layer, hidden size 8, two heads.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def two_matrices(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    shapes = {"model.embed_tokens.weight": [5, 8], "model.layers.0.mlp.up_proj.weight": [8, 8]}
    return fake_checkpoint(tmp_path_factory.mktemp("model"), shapes)


def uses(settings: Any, **models: Checkpoint) -> dict[str, GpuUse]:
    return {use.what: use for use in gpu_uses(settings, models)}


def test_memory_of_dto(model: Checkpoint):
    found = uses(Dto(), tiny=model)
    # 40 parameters × 4 + 2,048 tokens × (2 × 1 layer × 2 heads × 4 × 4 bytes = 64)
    assert found["serving tiny"][:4] == ("serving tiny", 131_232, 131_232, 0.85)
    # 16 × 40, and 2 × 1 layer × rows × 2,048 × 8; SimPO keeps no logits
    assert found["[training]"][1:4] == (640 + 32_768, 640 + 16 * 32_768, 1.0)
    assert "--set training.lora.r=32" in found["[training]"].remedy
    assert "training.per_device_train_batch_size=1" in found["[training]"].usual_remedy


def test_memory_of_adapters(two_matrices: Checkpoint):
    settings = load(Dto, "tiny", ["training.lora.r=2", "training.per_device_train_batch_size=1"])
    # 4 × 104 parameters + 16 × (2 × (8 + 8) = 32), and the activations
    assert uses(settings, tiny=two_matrices)["[training]"].least == 416 + 512 + 32_768


def test_memory_of_cot_distillation(model: Checkpoint):
    found = uses(CotDistillation(), tiny=model)
    assert set(found) == {"serving tiny", "[sft]", "[dpo]"}
    # logits: 8 × 2,048 × 5
    assert found["[sft]"].least == 640 + 32_768 + 81_920
    assert found["[dpo]"].least == 640 + 160 + 32_768 + 81_920  # with the reference


def test_memory_of_long_short(model: Checkpoint):
    settings = load(LongShort, "tiny")
    found = uses(settings, tiny=model)
    assert found["serving tiny"].share == 0.3  # 0.6 for two servers
    # Beside them: 16 × 40 + 4 × 40 for the reference. A dialogue: 9 turns × (192 + 19) + 22 = 1,921 tokens,
    # each 2 × 1 layer × 8 and 8 × 5.
    assert settings.protocol.max_dialogue_tokens == 1921
    assert found["[rl]"][1:4] == (800, 800 + 1921 * 56, 0.4)


def test_several_gpus_give_the_trainer_one_of_its_own(model: Checkpoint):
    settings = load(LongShort, "tiny")
    alone = {use.what: use for use in gpu_uses(settings, {"tiny": model}, gpus=8)}["[rl]"]
    assert alone.share == 1.0
    assert "gpu_memory_utilization" not in alone.remedy + alone.usual_remedy


def test_tensor_parallelism_splits_a_served_model(model: Checkpoint):
    found = uses(load(Dto, "tiny", ["engine.tensor_parallel_size=2"]), tiny=model)
    assert found["serving tiny"].least == 131_232 / 2
    (one,) = [use for use in gpu_uses(Dto(), {"tiny": model}, gpus=2) if use.what == "serving tiny"]
    assert "engine.tensor_parallel_size=2" in one.remedy


@pytest.mark.parametrize(
    ("settings", "gpus", "trains_beside_servers", "state", "found"),
    [
        ({}, "0123", False, OK, "4 replicas of each model, on GPUs 0, 1, 2, 3"),
        (
            {"servers_per_gpu": 2},
            "012",
            True,
            OK,
            "3 replicas of each model, on GPUs 0, 1, 2, each GPU shared by 2 servers; during reinforcement the trainer "
            "on GPU 0, 2 replicas of each model, on GPUs 1, 2, each GPU shared by 2 servers",
        ),
        ({"tensor_parallel_size": 4}, "01", False, ERROR, "needs 4 GPUs for the servers, and 2 are there"),
        ({"tensor_parallel_size": 2}, "01", True, ERROR, "needs 2 GPUs for the servers, and 1 are there"),
    ],
)
def test_where_servers_and_trainer_run(
    settings: dict[str, int], gpus: str, trains_beside_servers: bool, state: State, found: str
):
    finding = check_places(Engine(**settings), gpus, trains_beside_servers)  # type: ignore[arg-type]
    assert finding.state is state
    assert found in finding.found


def test_sharded_training(model: Checkpoint, two_matrices: Checkpoint):
    def training(*overrides: str, of: Checkpoint = model, gpus: int = 4) -> GpuUse:
        uses = gpu_uses(load(CotDistillation, "tiny", overrides), {"tiny": of}, gpus)
        return next(use for use in uses if use.what == "[dpo]")

    rows = 32_768 + 81_920  # activations and logits of a row, as above
    assert "--set dpo.fsdp=true" in training().remedy
    # (640 + 160) / 4, and gathered: the embedding of 40 parameters × 8, and the reference, 160
    sharded = training("dpo.fsdp=true")
    assert sharded.least == 200 + 320 + 160 + rows
    assert "fsdp" not in sharded.remedy
    assert training("dpo.fsdp=true", gpus=1).least == 800 + rows


def test_memory_of_several_seeds_names_settings_in_full(model: Checkpoint):
    found = uses(load(MultiSeed, "dto"), tiny=model)
    assert "dto.training.lora.r=32" in found["[dto.training]"].remedy


def test_remote_servers_leave_a_server_here_only_for_trained_models(model: Checkpoint):
    remote = ["engine.endpoints=['http://node1:8000']"]
    assert uses(load(MarkerReport, "tiny", remote), tiny=model) == {}
    assert "serving tiny" in uses(load(Dto, "tiny", remote), tiny=model)


def test_a_model_that_is_not_here_has_no_estimate(model: Checkpoint):
    teacher = "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
    settings = load(LongShort, "paper-qwen2.5-7b", [f"teacher={teacher}"])
    assert list(uses(settings, **{teacher: model})) == [f"serving {teacher}"]


@pytest.mark.parametrize(
    ("kind", "preset", "changes", "weights", "state"),
    [
        (Dto, "tiny", [], 1, 40),
        (Dto, "tiny", ["controls.trained=['sft', 'unpruned']"], 3, 40),
        (CotDistillation, "tiny", ["variants=['sft', 'dpo', 'sft-uncompressed', 'shuffled-ratings']"], 6, 40),
        (LongShort, "tiny", ["one_model=true"], 2 + 3 + 1 + 2, 40),  # GRPO's own: current and best weights
        (MultiSeed, "dto", [], 3 * (1 + 4), 40),
        (MarkerReport, "tiny", [], 0, 0),
    ],
)
def test_disk_of_a_run(model: Checkpoint, kind: Any, preset: str, changes: list[str], weights: int, state: int):
    # Each checkpoint has 40 parameters × 4 bytes; the trainer's state 12 bytes for each, twice.
    assert disk_bytes(load(kind, preset, changes), model) == weights * 160 + 24 * state


@pytest.mark.parametrize(("merge", "saved"), [("false", 32), ("true", 104)])
def test_adapters_and_their_state_are_small(two_matrices: Checkpoint, merge: str, saved: int):
    settings = load(Dto, "tiny", ["training.lora.r=2", f"training.lora.merge={merge}"])
    assert disk_bytes(settings, two_matrices) == 4 * saved + 24 * 32


def test_adapters_of_several_trainings_are_joined_and_whole_models_stay_whole(two_matrices: Checkpoint):
    def saved(*changes: str) -> float:
        settings = load(CotDistillation, "tiny", ["variants=[]", *changes])
        return (disk_bytes(settings, two_matrices) - 24 * state) / 4

    state = 32
    assert saved("sft.lora.r=2", "dpo.lora.r=2") == 32 + 64
    assert saved("sft.lora.r=2", "dpo.lora.r=2", "dpo.lora.merge=true") == 32 + 104
    assert saved("sft.lora.r=2", "sft.lora.merge=true", "dpo.lora.r=2") == 104 + 104


def test_what_presets_need_of_services():
    settings = load(CotDistillation, "paper-1.5b")
    assert model_names(settings) == ["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]
    assert data_sets(settings)[:2] == ["nvidia/OpenMathReasoning", "HuggingFaceH4/aime_2024"]
    assert [llm.url for llm in llms(settings)] == ["https://api.openai.com/v1"]
    assert len(trained_models(settings)) == 6
    assert model_names(load(LongShort, "paper-qwen2.5-7b"))[1] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


def test_a_data_set_in_a_folder_is_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = "problems={type='hub', name='owner/name'}"
    assert data_sets(load(Dto, "tiny", [source])) == []


HEADER = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.65.06              Driver Version: 580.65.06      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
LISTED = """0, GPU-aa11, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 81079
1, GPU-bb22, NVIDIA GB10, 580.65.06, [N/A], [N/A]
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program of this name, and nothing else, on the PATH."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(listed: str, header: str = HEADER, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        texts = {"listed": listed, "header": header}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        lines = f"import sys; print(open('{tmp_path}/' + ('listed' if sys.argv[1:] else 'header')).read(), end='')"
        program.write_text(f"#!{sys.executable}\n{lines}; sys.exit({code})\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_gpus_are_read_from_nvidia_smi(nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    nvidia_smi(LISTED)
    gpus = facts.read_gpus()
    first = Gpu(0, "GPU-aa11", "NVIDIA H100 80GB HBM3", "580.65.06", 81_559 * 1_048_576, 81_079 * 1_048_576)
    second = Gpu(1, "GPU-bb22", "NVIDIA GB10", "580.65.06", None, None)
    assert gpus == Gpus((first, second), (13, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert facts.read_gpus() == Gpus((second,), (13, 0), hidden=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert facts.read_gpus() == Gpus(hidden=2)


def test_an_nvidia_smi_that_fails(nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMore.\n", code=9)
    monkeypatch.setattr(facts, "_device_files", list)
    monkeypatch.setattr(facts, "_has_nvidia_card", lambda: True)
    assert facts.read_gpus().problem.startswith("nvidia-smi fails (NVIDIA-SMI has failed because")
    monkeypatch.setattr(facts, "_has_nvidia_card", lambda: False)
    assert facts.read_gpus() == Gpus()
    nvidia_smi("No devices were found\n")
    assert facts.read_gpus() == Gpus()


def test_gpus_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(facts, "_device_files", lambda: ["/dev/nvidia0"])
    found, remedy = split_message(facts.read_gpus().problem)
    assert found == "/dev/nvidia0 exist, but nvidia-smi is not on the PATH"
    assert "NVIDIA_DRIVER_CAPABILITIES" in remedy
    monkeypatch.setattr(facts, "_device_files", list)
    assert facts.read_gpus() == Gpus()


@pytest.mark.parametrize(
    ("header", "cuda"),
    [(HEADER, (13, 0)), ("CUDA Version        : 12.4", (12, 4)), ("CUDA UMD Version: 13.3", (13, 3)), ("", None)],
)
def test_the_drivers_cuda_version(header: str, cuda: Version | None):
    assert facts.parse_cuda(header) == cuda


def test_free_space_of_a_folder_that_does_not_exist_yet(tmp_path: Path):
    here, new = facts.free_bytes(tmp_path), facts.free_bytes(tmp_path / "new" / "runs")
    assert abs(here - new) < 1e9  # others write, too


class Web:
    """A server on loopback that answers the paths of `replies`; `asked` holds each path with its key."""

    def __init__(self, replies: dict[str, Any]):
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Authorization"]))
                body = json.dumps(replies.get(self.path)).encode()
                self.send_response(200 if self.path in replies else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web() -> Iterator[Callable[[dict[str, Any]], Web]]:
    started: list[Web] = []

    def start(replies: dict[str, Any]) -> Web:
        started.append(Web(replies))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU, services and network file systems."""
    monkeypatch.setattr(facts, "read_gpus", Gpus)
    monkeypatch.setattr(facts, "read_builds", lambda: CPU_BUILD)
    monkeypatch.setattr(file_systems, "mounts", list)
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", remote_servers.KEY):
        monkeypatch.delenv(name, raising=False)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, tuple[str, str, str]], str]:
    """The exit code, the table by check (state, found, what to do), and standard error."""
    code = main(["doctor", *arguments])
    output = capsys.readouterr()
    rows: dict[str, tuple[str, str, str]] = {}
    check = ""
    for line in output.out.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.split("│")[1:5])
            if cells[0]:  # else a row that goes on
                check, rows[name] = name, ("", "", "")
            joined = [f"{old} {new}".strip() for old, new in zip(rows[check], cells, strict=True)]
            rows[check] = (joined[0], joined[1], joined[2])
    return code, rows, output.err


@pytest.mark.usefixtures("no_gpu")
def test_this_machine_can_run_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, rows, error = told(capsys, "--set", f"storage.root={tmp_path / 'runs'}")
    assert (code, error) == (0, "")
    assert list(rows) == ["GPU", "disk", "rollout store", "hub", "Prefect"]
    assert {state for state, _, _ in rows.values()} == {"ok"}
    assert "21.6 MB by estimate" in rows["disk"][1]  # 28 × 772,224
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_gpu")
def test_errors_end_with_code_2_and_name_the_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(facts, "read_gpus", lambda: Gpus((A10,), (13, 0)))
    monkeypatch.setattr(file_systems, "mounts", lambda: [Mount("server:/", str(tmp_path), "nfs4")])
    code, rows, error = told(capsys, "dto", "--preset", "tiny", "--set", f"storage.root={tmp_path}")
    assert code == 2
    assert error.startswith("error: this run cannot be done here like this: GPU, rollout store; see the table")
    assert error.count("\n") == 1
    assert "make setup ACCELERATOR=gpu" in rows["GPU"][2]
    assert rows["rollout store"][0] == "error"
    assert rows["GPU memory: serving tiny"][0] == rows["GPU memory: [training]"][0] == "ok"


@pytest.mark.usefixtures("no_gpu")
def test_a_model_that_is_not_here_is_a_warning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setattr(facts, "is_hub_offline", lambda: False)
    code, rows, error = told(capsys, "--set", "model=nobody/none", "--set", "storage.root=s3://bucket")
    assert (code, error) == (0, "")
    assert rows["model"] == (
        "warning",
        "nobody/none is not complete on this machine: its memory and disk cannot be estimated",
        "`brevity check-model nobody/none` downloads and checks it; then ask again",
    )
    assert rows["GPU"][0] == rows["disk"][0] == "warning"
    assert f"{Path('runs').resolve()}" in rows["disk"][1]
    assert rows["hub"] == ("ok", "a token is there; needed: nobody/none", "")
    assert "s3cret" not in str(rows)


@pytest.mark.usefixtures("no_gpu")
def test_a_folder_without_a_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, rows, _ = told(capsys, "--set", f"model={tmp_path}")
    assert code == 2
    assert rows["model"][0] == "error"
    assert "no config.json" in rows["model"][1]


@pytest.mark.usefixtures("no_gpu")
def test_the_bundled_model_served_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Server, "name", Checkpoint.open(TINY_MODEL).fingerprint)
    monkeypatch.setattr(Server, "key", "s3cret")
    server, gone = Server(), Server()
    gone.die(gone._server)
    endpoints = f"engine.endpoints=['{server.url}/v1', '{gone.url}']"
    monkeypatch.setenv(remote_servers.KEY, "wr0ng")
    code, rows, error = told(capsys, "--set", endpoints)
    assert code == 2
    assert rows[f"endpoint {server.url}"] == ("error", f"{server.url} rejects the API key", f"set {remote_servers.KEY}")
    assert rows[f"endpoint {gone.url}"][:2] == ("error", "not reachable")
    assert "wr0ng" not in f"{rows}{error}"
    monkeypatch.setenv(remote_servers.KEY, "s3cret")
    assert told(capsys, "--set", endpoints)[1][f"endpoint {server.url}"] == ("ok", "serves the base model", "")
    server.die(server._server)


@pytest.mark.usefixtures("no_gpu")
def test_a_language_model_is_asked_with_its_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, web: Callable[[dict[str, Any]], Web]
):
    server = web({"/v1/models": {"data": [{"id": "gpt"}]}})
    monkeypatch.setenv("MY_KEY", '"s3cret"\n')
    given = f"llm={{url='{server.url}/v1/', model='gpt', key_variable='MY_KEY'}}"
    arguments = ["--set", given, "--set", "pruning.type=llm"]
    code, rows, _ = told(capsys, *arguments)
    assert (code, rows[f"llm.url {server.url}/v1/"]) == (0, ("ok", "serves gpt", ""))
    assert server.asked == [("/v1/models", "Bearer s3cret")]
    monkeypatch.setenv("MY_KEY", "two w0rds")
    code, rows, error = told(capsys, *arguments)
    assert (code, rows["llm.url"][0]) == (2, "error")
    assert "MY_KEY holds no key" in rows["llm.url"][1]
    assert "w0rds" not in f"{rows}{error}"


@pytest.mark.usefixtures("no_gpu")
def test_a_prefect_server_is_asked_as_its_client_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, web: Callable[[dict[str, Any]], Web]
):
    server = web({"/api/health": True, "/api/admin/version": "3.999.0"})
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:s3cret")
    code, rows, _ = told(capsys)
    assert (code, rows["Prefect"][0]) == (0, "ok")
    assert f"{server.url}/api runs 3.999" in rows["Prefect"][1]
    basic = "Basic YW5uOnMzY3JldA=="  # ann:s3cret in base64
    assert server.asked == [("/api/health", basic), ("/api/admin/version", basic)]
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/nothing")
    assert told(capsys)[1]["Prefect"][0] == "error"


def test_no_framework_is_loaded_without_a_gpu():
    program = (
        "import sys; from flows.doctor import facts; from flows.doctor.checks import Gpus; from flows.cli import main\n"
        "facts.read_gpus = Gpus; main(['doctor'])\n"
        "print([name for name in ('torch', 'prefect', 'transformers', 'vllm') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert output.stdout.splitlines()[-1] == "[]"


def test_a_bad_setting_is_told_before_anything_is_read(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "dto", "--set", "sampling.sample=2"]) == 2
    assert capsys.readouterr().err.startswith("error: tiny.toml: sampling.sample: unknown setting")


@pytest.mark.parametrize(
    ("workers", "gpus", "state", "words"),
    [
        (Workers(kind="ray"), [8, 8, 0], State.OK, "Ray at auto: 3 nodes with 8, 8, 0 GPUs"),
        (Workers(kind="ray", training_nodes=4), [8, 8], State.ERROR, "training takes 4 nodes"),
        (Workers(kind="ray"), "no Ray cluster answers at auto; start it", State.ERROR, "no Ray cluster answers"),
    ],
)
def test_workers_on_ray(workers: Workers, gpus: list[int] | str, state: State, words: str):
    finding = check_workers(workers, gpus)
    assert (finding.state, words in finding.found) == (state, True)
    assert bool(finding.remedy) == (state is State.ERROR)
