"""Deployed runs on a real Prefect server with a real worker and a scripted model: forms, schedules, and what happens
when something dies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, Log, State, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from conf.base import Settings
from conf.dto import Dto
from conf.load import load
from conf.multi_seed import MultiSeed
from flows.automations import automations, ensure_automations
from flows.deploy import deploy, deployment
from models.inference.rollout_store import RolloutStore
from models.processes import GuardedProcess, free_port
from tests.flows.scripted_flows import dto, multi_seed
from tests.flows.test_dto_stack import EVERY_STEP, SMALL
from tests.flows.test_multi_seed_stack import SMALL as SEEDS
from tests.waiting import until

REPOSITORY = Path(__file__).parent.parent.parent


class Site:
    """A Prefect server with its folder."""

    def __init__(self, client: SyncPrefectClient, folder: Path, environment: dict[str, str]):
        self.client, self.folder, self.environment = client, folder, environment
        self.servers: list[GuardedProcess] = []
        """One after the other."""
        self._flows: dict[str, str] = {}
        """By deployment."""

    def start_server(self) -> None:
        url = self.environment["PREFECT_API_URL"]
        port = url.rpartition(":")[2].removesuffix("/api")
        command = ["-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", port]
        self.servers.append(GuardedProcess([sys.executable, *command], self.folder / "server.log", self.environment))
        until(lambda: is_healthy(url), "Prefect's server")

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker that is killed at the end. Its runs notice that, and end themselves as crashed."""
        command = ["-m", "prefect", "worker", "start", "--pool", "brevity", "--type", "process"]
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env=os.environ | self.environment
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def end_runs(self) -> None:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(self.folder):
                process.kill()

    def deploy(self, name: str, *changes: str) -> Path:
        """Deploys the scripted DTO with a storage of its own. Returns the folder of its storage."""
        root = self.folder / name
        self._deploy(dto, name, load(Dto, "tiny", (*SMALL, f"storage.root={root}", *changes)), root)
        return root

    def deploy_seeds(self, name: str, *changes: str) -> Path:
        """The same for several seeds."""
        root = self.folder / name
        self._deploy(multi_seed, name, load(MultiSeed, "dto", (*SEEDS, f"dto.storage.root={root}", *changes)), root)
        return root

    def _deploy(self, flow: Any, name: str, settings: Settings, root: Path) -> None:
        variables = {
            "working_dir": str(self.folder),
            "env": {
                "PYTHONPATH": str(REPOSITORY),
                "SCRIPTED_HOLD": str(root.with_suffix(".hold")),
                "BREVITY_NODE": name.rpartition("@")[2],
            },
        }
        parameters = {"settings": settings.model_dump(mode="json")}
        deploy("brevity", "process", [deployment(flow, name, "brevity", parameters, variables, "0 2 * * *")])
        self._flows[name] = flow.name

    def start(self, name: str, **form: Any) -> UUID:
        found = self.client.read_deployment_by_name(f"{self._flows[name]}/{name}")
        return self.client.create_flow_run_from_deployment(found.id, parameters=form).id

    def run(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def finished(self, run: UUID) -> FlowRun:
        """The run, when it is in a final state."""

        def final() -> FlowRun | None:
            found = self.run(run)
            return found if found.state and found.state.is_final() and found.state.name != "Crashed" else None

        return until(final, "the run's end")

    def lines(self, run: UUID) -> list[Log]:
        return self.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), limit=200)

    def log(self, run: UUID) -> str:
        return "\n".join(line.message for line in self.lines(run))

    def why(self, run: FlowRun) -> str:
        """How a run ended."""
        return f"{run.state_name}: {run.state and run.state.message}\n{self.log(run.id)}"

    def scheduled(self, deployment: UUID) -> UUID | None:
        """A run that a schedule made."""
        runs = self.client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            sort=FlowRunSort.START_TIME_DESC,
        )
        return next((run.id for run in runs if run.auto_scheduled and run.start_time), None)

    def completions(self, root: Path) -> int:
        store = RolloutStore(f"sqlite:///{root / 'rollouts.sqlite'}")
        stored = sum(line.completions for line in store.summarise())
        store.close()
        return stored


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    url = f"http://127.0.0.1:{free_port()}/api"
    environment = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with ExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        site = Site(stack.enter_context(get_client(sync_client=True)), folder, environment)
        stack.callback(site.end_runs)
        site.start_server()
        stack.callback(lambda: site.servers[-1].end())
        yield site


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def worker(site: Site) -> Iterator[None]:
    with site.worker():
        yield


def made(root: Path) -> list[str]:
    """The steps that all runs in this storage computed, sorted."""
    ledgers = [json.loads(report.read_text())["ledger"] for report in root.glob("dto-*/report.json")]
    return sorted(line["stage"] for ledger in ledgers for line in ledger if not line["cached"])


class Held:
    """A run of a deployment with this storage, whose sampling waits until `release`."""

    def __init__(self, site: Site, name: str, root: Path):
        self.root = root
        self._hold = self.root.with_suffix(".hold")
        self._hold.touch()
        self.run = site.start(name)
        self.process = psutil.Process(int(until(self._waits, "sampling")))

    def _waits(self) -> str:
        file = self.root.with_suffix(".waits")
        return file.read_text() if file.exists() else ""

    def release(self) -> None:
        self._hold.unlink()


def test_a_run_from_the_form_then_one_on_schedule(site: Site, worker: None):
    site.deploy("first")
    root = site.folder / "first"
    run = site.finished(site.start("first", seed=1, problem_count=6))
    assert run.state_name == "Completed", site.why(run)
    assert run.name == "dto-tiny-seed-1"
    until(lambda: "sample: 6/6 prompts" in site.log(run.id), "the log")
    steps = site.client.read_task_runs(limit=200)
    names = {step.name for step in steps if step.flow_run_id == run.id}
    assert {"sample-traces [tiny, training problems]", "evaluate [dto, the benchmark]"} <= names
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    kinds = {artifact.key for artifact in site.client.read_artifacts(artifact_filter=ours)}
    assert {"dto-tiny-summary", "dto-tiny-ledger"} <= kinds
    stored = site.completions(root)

    found = site.client.read_deployment_by_name("dto/first")
    (nightly,) = found.schedules
    assert not nightly.active
    soon = IntervalSchedule(interval=timedelta(days=1), anchor_date=datetime.now(UTC) + timedelta(seconds=2))
    form = {"seed": 1, "problem_count": 6}
    site.client.create_deployment_schedules(
        found.id, [DeploymentScheduleCreate(schedule=soon, active=True, parameters=form)]
    )
    again = site.finished(until(lambda: site.scheduled(found.id), "the scheduled run"))
    assert again.state_name == "Completed", site.why(again)
    assert site.completions(root) == stored
    ledger = json.loads((root / "latest" / "report.json").read_text())["ledger"]
    assert [(line["stage"], line["cached"]) for line in ledger] == [(step, True) for step in EVERY_STEP]

    before = site.client.read_deployment_by_name("dto/first").schedules
    site.deploy("first")
    assert [one.active for one in site.client.read_deployment_by_name("dto/first").schedules] == [
        one.active for one in before
    ]
    assert any(one.active for one in before)


def test_a_mistake_in_the_form_ends_a_run_before_it_starts_anything(site: Site, worker: None):
    site.deploy("mistaken")
    with pytest.raises(PrefectHTTPStatusError, match="problem_count"):
        site.start("mistaken", problem_count=0)
    with pytest.raises(PrefectHTTPStatusError, match=r"problems\.cuont"):
        site.start("mistaken", overrides=[{"setting": "problems.cuont", "value": "3"}])
    run = site.finished(site.start("mistaken", overrides=[{"setting": "problems.count", "value": "none"}]))
    assert run.state_name == "Failed"
    assert run.state
    assert "tiny.toml: problems.count: Input should be a valid integer" in (run.state.message or "")


class Deaths(NamedTuple):
    """Runs after the death of something, in their final states."""

    killed: FlowRun
    seeds: FlowRun
    hopeless: FlowRun
    workerless: FlowRun
    both: FlowRun


@pytest.fixture(scope="module")
def deaths(site: Site) -> Deaths:
    """Five runs, all sampling; one of them, over two seeds, for the second. Three are killed under a living worker,
    then the worker, then one that it had started."""
    with site.worker():
        seeds = site.deploy_seeds("seeds")
        site.finished(site.start("seeds", seeds=[0]))
        names = {"killed": (), "hopeless": ("retries.restarts=0",), "workerless": (), "both": ()}
        roots = {name: site.deploy(name, *changes) for name, changes in names.items()}
        ensure_automations(site.client, automations(silence=timedelta(seconds=75)))
        held = {name: Held(site, name, root) for name, root in (roots | {"seeds": seeds}).items()}
        for name in ("killed", "hopeless", "seeds"):
            held[name].process.kill()
            until(lambda run=held[name].run: site.run(run).state_name == "Crashed", f"the crash of {name}")
    held["both"].process.kill()
    for one in held.values():
        one.release()
    with site.worker():
        ended = Deaths(**{name: site.finished(one.run) for name, one in held.items()})
    ensure_automations(site.client, automations())
    return ended


def test_a_killed_run_starts_again_and_goes_on(site: Site, deaths: Deaths):
    assert (deaths.killed.state_name, deaths.killed.run_count) == ("Completed", 2), site.why(deaths.killed)
    until(lambda: "draw-problems: cached" in site.log(deaths.killed.id), "the log")


def test_several_seeds_go_on_in_the_seed_where_they_were_killed(site: Site, deaths: Deaths):
    run = deaths.seeds
    assert (run.state_name, run.run_count) == ("Completed", 2), site.why(run)
    first, both = (json.loads(report.read_text()) for report in sorted((site.folder / "seeds").glob("*-*/report.json")))
    assert (first["seeds"], both["seeds"]) == ([0], [0, 1])
    trainings = [line["cached"] for line in both["ledger"] if line["stage"].startswith("train-")]
    of_first = [line for line in first["ledger"] if line["stage"].startswith("train-")]
    assert len(trainings) == 2 * len(of_first)
    assert all(trainings[: len(of_first)])


@pytest.mark.parametrize("name", ["workerless", "both"])
def test_a_run_whose_worker_died_starts_again_on_the_next(site: Site, deaths: Deaths, name: str):
    run: FlowRun = getattr(deaths, name)
    assert (run.state_name, run.run_count) == ("Completed", 2), site.why(run)


def test_a_run_that_crashes_again_and_again_fails(deaths: Deaths):
    assert deaths.hopeless.state_name == "Failed"
    assert deaths.hopeless.state
    assert "this run has started again 0 times" in (deaths.hopeless.state.message or "")


def test_a_cancelled_run_leaves_nothing_and_the_next_goes_on(site: Site, worker: None):
    held = Held(site, "cancelled", site.deploy("cancelled"))
    site.client.set_flow_run_state(held.run, State(type=StateType.CANCELLING), force=True)
    assert site.finished(held.run).state_name == "Cancelled"
    assert not held.process.is_running()
    held.release()
    run = site.finished(site.start("cancelled"))
    assert run.state_name == "Completed", site.why(run)


def test_a_living_run_that_was_taken_for_crashed_and_started_again(site: Site, worker: None):
    """As after a server that was away for long: two processes of one run, which share the work."""
    held = Held(site, "alive", site.deploy("alive"))
    site.client.set_flow_run_state(held.run, State(type=StateType.SCHEDULED, name="AwaitingRetry"), force=True)
    until(lambda: "another run makes it" in site.log(held.run), "the second process")
    held.release()
    run = site.finished(held.run)
    assert (run.state_name, run.run_count) == ("Completed", 2), site.why(run)
    until(lambda: len(list(held.root.glob("dto-*/report.json"))) == 2, "both reports")
    assert made(held.root) == sorted(EVERY_STEP)


def test_two_runs_of_the_same_settings_compute_everything_once(site: Site, worker: None):
    held = Held(site, "twice", site.deploy("twice"))
    site.deploy("twice-too", f"storage.root={held.root}")
    other = site.start("twice-too")
    until(lambda: "another run makes it" in site.log(other), "the second run to wait")  # without the GPU slot
    held.release()
    runs = [site.finished(run) for run in (held.run, other)]
    assert [run.state_name for run in runs] == ["Completed"] * 2, "\n".join(map(site.why, runs))
    assert made(held.root) == sorted(EVERY_STEP)


def test_two_runs_on_one_node_take_turns(site: Site, worker: None):
    """The first has finished a step, and holds the slot in the next."""
    held = Held(site, "first@node", site.deploy("first@node"))
    site.deploy("second@node", "seed=1")
    other = site.start("second@node")
    until(lambda: "takes a slot of the limit gpu:node" in site.log(other), "the second run to wait")
    assert "slot taken" not in site.log(other)
    held.release()
    first, second = site.finished(held.run), site.finished(other)
    assert (first.state_name, second.state_name) == ("Completed", "Completed"), site.why(first) + site.why(second)
    until(lambda: "slot taken" in site.log(other), "the log of the second run")
    taken = next(line.timestamp for line in site.lines(other) if "slot taken" in line.message)
    assert taken > max(line.timestamp for line in site.lines(held.run) if "benchmark: " in line.message)


def test_a_server_that_is_away_for_a_while_ends_no_run(site: Site, worker: None):
    held = Held(site, "away", site.deploy("away"))
    site.servers[-1].end()
    held.release()
    until(lambda: site.completions(held.root), "samples without the server")
    site.start_server()
    run = site.finished(held.run)
    assert (run.state_name, run.run_count) == ("Completed", 1), site.why(run)
