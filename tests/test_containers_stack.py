"""The Dockerfile, the compose file and the Kubernetes job, by what checks them without a container engine."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from compose_spec.models import ComposeSpecification
from prefect.client.schemas.objects import FlowRun

from bench.dockerfile import steps
from tests.flows.test_deploy_stack import job
from tests.test_house import ROOT

COMPOSE = ROOT / "conf" / "containers" / "compose.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def test_the_dockerfile_has_no_findings_of_a_linter():
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("", 0)


def test_images_of_both_targets_run_without_root():
    assert re.findall("^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert DOCKERFILE.index("USER 1000") < DOCKERFILE.index("make packages")
    assert re.findall("^FROM .* AS (.*)$", DOCKERFILE, re.MULTILINE) == ["base", "gpu", "cpu"]


def test_the_packages_are_a_layer_of_their_own():
    """A change of code installs no package anew: what that step reads is copied before it, and nothing else is."""
    before = DOCKERFILE[: DOCKERFILE.index("RUN make packages")]
    assert re.findall("^COPY .*$", before, re.MULTILINE) == [
        "COPY --chown=brevity Makefile ./",
        "COPY --chown=brevity conf/requirements conf/requirements",
    ]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_steps_that_are_run_without_an_engine_are_those_of_the_target(target: str):
    ran = [rest for name, rest in steps(DOCKERFILE, target) if name == "RUN"]
    assert [rest.split()[0] for rest in ran] == ["apt-get", "make", "make"]
    assert [rest for rest in ran if rest.startswith("make")] == ["make packages", "make setup"]
    assert ("ENV", f"ACCELERATOR={target}") in steps(DOCKERFILE, target)


def test_the_compose_file_follows_the_specification(services: dict[str, Any]):
    ComposeSpecification.model_validate(yaml.safe_load(COMPOSE.read_text()))
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        built = service.get("build")
        assert not built or (COMPOSE.parent / built["context"]).resolve() == ROOT
    assert (COMPOSE.parent / "databases.sql").is_file()


def test_no_secret_is_in_the_compose_file(services: dict[str, Any]):
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("KEY|SECRET|PASSWORD|TOKEN|AUTH|DATABASE", name):
                assert re.search(r"\$\{\w+:[?-]", value), f"{name} is not taken from the environment"


def test_nothing_is_open_beyond_the_machine(services: dict[str, Any]):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]
    assert not any("network_mode" in service or "privileged" in service for service in services.values())
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["prefect"]["environment"]


def test_a_kubernetes_job_follows_its_schema():
    configuration = job("kubernetes", gpu_count=8, volume_claim="results", image="registry/brevity:1")
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="run"))
    manifest = json.loads(json.dumps(configuration.job_manifest))
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}


def test_the_image_holds_what_it_runs():
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert not {"flows", "tasks", "models", "reasoning", "conf", "pyproject.toml", "Makefile"} & set(left_out)
