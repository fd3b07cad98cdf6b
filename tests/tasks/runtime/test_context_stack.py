import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conf.engine import Engine, Storage
from conf.llm import Llm
from models.inference.scripted_engine import ScriptedEngine
from reasoning.llm_queries import LlmQuery, LlmReply
from reasoning.records import Problem, SkippedRow, TextPart
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import canonical, step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.run_directory import keys_of_run
from tasks.runtime.step_inputs import StepInputs
from tasks.steps.llm import query_llm
from tests.flows.world import speak, without_prefect
from tests.models.chat import Answer, Chat
from tests.models.fakes import fake_checkpoint


def test_remote_servers_serve_the_base_model_only(tmp_path: Path):
    def own(*_: object) -> ScriptedEngine:
        return ScriptedEngine(speak)

    trained = fake_checkpoint(tmp_path / "trained", {"model.embed_tokens.weight": [6, 8]})
    storage = Storage(root=str(tmp_path / "runs"))
    for endpoints in ((), ("http://127.0.0.1:9",)):
        with RunContext("test", storage, Engine(endpoints=endpoints), make_engine=own) as ctx:
            base = ctx.resources.checkpoint(ctx.resources.model("tiny"))
            assert ctx.resources.engine_for(trained) is ctx.resources.engine
            assert ctx.resources.engine_for(base) is (
                ctx.resources.remote_servers if endpoints else ctx.resources.engine
            )


BARRIER = threading.Barrier(2, timeout=60)


class Inputs(StepInputs):
    number: int
    read: tuple[ArtifactRef, ...] = ()


@step()
def meet(ctx: StepContext, inputs: Inputs) -> ArtifactRef:
    """Completes only while another step runs."""
    BARRIER.wait()
    row = Problem(id=str(inputs.number), prompt=(TextPart(text="1 + 1?"),), answer="2")
    skipped = [SkippedRow(id=str(inputs.number), reason="test", detail="")]
    BARRIER.wait()
    return ctx.publish("problems", [row], rows_in=2, skipped=skipped)


def test_two_steps_run_in_parallel(tmp_path: Path):
    with RunContext("test", Storage(root=str(tmp_path)), Engine()) as ctx:
        with ThreadPoolExecutor(2) as threads:
            refs = list(threads.map(lambda number: meet(ctx, inputs=Inputs(number=number)), range(2)))
        assert sorted(ref.entry or 0 for ref in refs) == [0, 1]
        assert [ctx.artifacts.rows(ref, Problem)[0].id for ref in refs] == ["0", "1"]
        assert all(ctx.ledger[ref.entry or 0].artifact.digest == ref.digest for ref in refs)
        lists = [path.read_text() for path in (tmp_path / "set-aside").iterdir()]
        assert sorted(lists) == [f'{{"id":"{number}","reason":"test","detail":""}}\n' for number in range(2)]


class Sum(LlmReply):
    value: int


def test_steps_that_share_an_auxiliary_model_pay_for_their_own_queries(tmp_path: Path, chat: Callable[..., Chat]):
    llm = Llm(url=chat(lambda body, number: Answer('{"value": 2}'), prompt_tokens=100).url, model="m")

    def prompt_tokens(count: int) -> int:
        queries = [LlmQuery("Add.", f"{count} + {number}?", Sum, 9) for number in range(count)]
        return query_llm(ctx, llm, f"ask-{count}", queries, max_invalid_fraction=0).usage.prompt_tokens

    with RunContext("test", Storage(root=str(tmp_path)), Engine()) as ctx, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(prompt_tokens, [3, 5, 7, 9])) == [300, 500, 700, 900]


@step()
def nothing(ctx: StepContext) -> ArtifactRef:
    return ctx.publish("problems", [], rows_in=0)


def test_each_attempt_of_a_step_has_its_own_clock(tmp_path: Path):
    with RunContext("test", Storage(root=str(tmp_path)), Engine()) as run:
        ctx = StepContext(run, "a-step-of-tests", {"step": "nothing"})
        ctx.started -= 1000  # an attempt that failed long ago
        assert ctx.count(1, 1).seconds > 999
        count = nothing.task.fn(ctx).count
        assert count
        assert count.seconds < 999


def test_a_cache_hit_counts_as_use_and_each_run_lists_its_keys(tmp_path: Path):
    def run() -> Path:
        with without_prefect(), RunContext("test", Storage(root=str(tmp_path)), Engine()) as ctx:
            nothing(ctx)
            nothing(ctx)
        return ctx.directory.path

    first = run()
    (manifest,) = (tmp_path / "manifests").iterdir()
    os.utime(manifest, times=(1, 1))  # 1970
    second = run()
    assert manifest.stat().st_mtime > 1
    assert first != second
    assert [keys_of_run(path) for path in (first, second)] == [[manifest.stem]] * 2
    assert (second / "keys.txt").read_text() == f"{manifest.stem}\n{manifest.stem}\n"


def test_grouped_inputs_count_by_content(tmp_path: Path):
    ref = ArtifactRef(kind="problems", uri="somewhere", digest="d", rows=1)
    inputs = Inputs(number=3, read=(ref,))
    assert canonical(inputs) == {"number": 3, "read": [ref.fingerprint()]}
    assert canonical(inputs.model_copy(update={"read": (ref.model_copy(update={"uri": "elsewhere"}),)})) == canonical(
        inputs
    )
