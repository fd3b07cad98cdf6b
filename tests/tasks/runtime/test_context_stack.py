from pathlib import Path

from conf.engine import Engine, Storage
from models.inference.scripted_engine import ScriptedEngine
from tasks.runtime.context import RunContext
from tests.flows.world import speak
from tests.models.fakes import fake_checkpoint


def test_servers_elsewhere_serve_the_base_and_nothing_that_a_run_made(tmp_path: Path):
    def own(*_: object) -> ScriptedEngine:
        return ScriptedEngine(speak)

    made = fake_checkpoint(tmp_path / "made", {"model.embed_tokens.weight": [6, 8]})
    storage = Storage(root=str(tmp_path / "runs"))
    for endpoints in ((), ("http://127.0.0.1:9",)):
        with RunContext("test", storage, Engine(endpoints=endpoints), make_engine=own) as ctx:
            base = ctx.resources.checkpoint(ctx.resources.model("tiny"))
            assert ctx.resources.engine_for(made) is ctx.resources.engine
            assert ctx.resources.engine_for(base) is (
                ctx.resources.remote_servers if endpoints else ctx.resources.engine
            )
