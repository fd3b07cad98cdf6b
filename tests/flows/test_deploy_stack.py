"""Deployments and job templates, without a server."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.workers.process import ProcessWorker
from prefect_docker.worker import DockerWorker
from prefect_kubernetes.worker import KubernetesWorker

from conf.job_templates import ENVIRONMENT, POOL_TYPES, job_template
from conf.pipelines import PIPELINES
from flows.cli import main
from flows.deploy import deployment
from flows.pipeline import pipeline_flow

WORKERS: dict[str, Any] = {
    "process": ProcessWorker,
    "docker": DockerWorker,
    "kubernetes": KubernetesWorker,
}
REPOSITORY = Path(__file__).parent.parent.parent


def job(kind: str, **variables: Any) -> Any:
    """A job as the worker of this kind renders it."""
    configuration: Any = WORKERS[kind].job_configuration
    nothing: Any = object()  # a client would resolve references to blocks, of which there are none
    return asyncio.run(configuration.from_template_and_values(job_template(kind), variables, client=nothing))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_every_job_sends_heartbeats_and_outlasts_a_server_that_is_away(kind: str):
    assert job(kind).env.items() >= ENVIRONMENT.items()


def test_a_kubernetes_job_gets_gpus_memory_and_a_volume():
    spec = job("kubernetes", gpu_count=8, volume_claim="results", image="registry/brevity:1").job_manifest["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/brevity:1"
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": 8}
    assert container["resources"]["requests"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 8}
    assert container["workingDir"] == "/work"
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shared-memory": "/dev/shm",
        "work": "/work",
    }
    shared, work = pod["volumes"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert work["persistentVolumeClaim"] == {"claimName": "results"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["envFrom"] == [{"secretRef": {"name": "brevity", "optional": True}}]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)


def test_a_docker_job_gets_all_gpus_and_a_volume():
    rendered = job("docker", image="brevity:2")
    assert rendered.image == "brevity:2"
    assert rendered.volumes == ["brevity-work:/work"]
    assert rendered.container_create_kwargs == {
        "working_dir": "/work",
        "shm_size": "16g",
        "init": True,
        "device_requests": [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}],
    }


def test_a_process_works_where_it_was_deployed():
    assert job("process", working_dir="/data").working_dir == Path("/data")


def test_an_environment_of_ones_own_keeps_the_heartbeats():
    made = deployment(pipeline_flow("dto"), "mine", "pool", {}, {"env": {"HF_HOME": "/work/hub"}}, "0 2 * * *")
    assert made.job_variables == {"env": {"HF_HOME": "/work/hub", **ENVIRONMENT}}


def test_the_committed_file_deploys_the_same():
    """prefect.yaml is for those who deploy with Prefect's own command."""
    written = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    for name, entry in zip(PIPELINES, written, strict=True):
        made = deployment(pipeline_flow(name), "default", "brevity", {}, {}, "0 2 * * *")
        assert made.concurrency_options
        assert made.schedules
        (schedule,) = made.schedules
        assert entry == {
            "name": made.name,
            "entrypoint": made.entrypoint,
            "tags": made.tags,
            "work_pool": {"name": made.work_pool_name},
            "schedules": [{"cron": "0 2 * * *", "timezone": "UTC", "active": schedule.active}],
            "concurrency_limit": {
                "limit": made.concurrency_limit,
                "collision_strategy": made.concurrency_options.collision_strategy.value,
                "grace_period_seconds": made.concurrency_options.grace_period_seconds,
            },
            "enforce_parameter_schema": made.enforce_parameter_schema,
        }


def test_a_deployment_needs_the_address_of_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["deploy", "dto"]) == 2
    assert "error: PREFECT_API_URL is not set: start a server" in capsys.readouterr().err


def test_a_server_that_is_away_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    url = "http://127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert main(["deploy", "dto"]) == 2
    assert f"error: Prefect's server at {url} refuses or is away: " in capsys.readouterr().err


def test_a_job_variable_without_a_value_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert main(["deploy", "dto", "--job", "gpu_count"]) == 2
    assert "error: --job gpu_count: write it as" in capsys.readouterr().err


def test_a_variable_of_the_environment_is_text():
    made = deployment(pipeline_flow("dto"), "mine", "pool", {}, {"env": {"CUDA_VISIBLE_DEVICES": 0}}, "0 2 * * *")
    assert made.job_variables
    assert made.job_variables["env"]["CUDA_VISIBLE_DEVICES"] == "0"
