"""Throughput of dialogues during GRPO, compared with the same requests sent at once.

    python -m bench.dialogues LONG SHORT     # two checkpoint folders, such as those in a run's model_pair.json

Two models hold the dialogues of one step (16 problems × 8, as in the tiny preset). All their requests are then known,
and the same two servers sample them again at once, with as many in flight: the throughput where no request waits for a
partner's turn. Both modes alternate for several rounds without reuse; the result is the median of tokens per second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from conf.load import load
from conf.long_short import LongShort
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.dialogue_sampler import SPEAKERS, DialogueSampler, TurnCodec
from models.inference.own_servers import OwnServers
from models.inference.rollout_executor import RolloutExecutor
from models.inference.rollout_store import Purpose, RolloutStore
from models.inference.scheduler import EngineScheduler, SamplingJob
from reasoning.dialogue import STOPS
from reasoning.records import Problem
from reasoning.sampling_plans import FullEstimate
from reasoning.stories import Split, draw_stories
from reasoning.token_ids import TokenIds
from tasks.steps.problems import story_problem

ROUNDS = 15
SAMPLING = Sampling(samples=1, temperature=1.0, top_p=1.0)


def main(folders: Sequence[str]) -> None:
    settings = load(LongShort, "tiny")
    rl = settings.rl
    models = [Checkpoint.open(Path(folder)) for folder in folders]
    codec = TurnCodec(models[0], settings.protocol)
    stories = draw_stories(Split.TRAIN, 99, rl.problems_per_step * (ROUNDS + 1), (1, 2, 3, 4, 5, 6, 7, 8))
    problems = [story_problem(story, Split.TRAIN, 99, index) for index, story in enumerate(stories)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = [OwnServers(settings.engine, Path(folder) / f"{speaker}.log") for speaker in SPEAKERS]
        for server in servers:
            stack.callback(server.close)
        speeds: tuple[list[float], list[float]] = ([], [])
        for number in range(ROUNDS + 1):
            part = problems[number * rl.problems_per_step : (number + 1) * rl.problems_per_step]
            store = RolloutStore(f"sqlite:///{folder}/{number}")
            plans = [DialogueSampler(codec, codec.prompts(problem), rl.num_generations) for problem in part]
            for server in servers:
                server.max_concurrency = rl.batch
            dialogue_speed = timed(servers, models, [plan.job(SAMPLING) for plan in plans], store, Purpose.GRPO)
            request_jobs = [
                job for plan, problem in zip(plans, part, strict=True) for job in requests(codec, plan, problem)
            ]
            for server in servers:  # as many in flight as there are dialogues, over both servers
                server.max_concurrency = rl.batch // len(servers)
            request_speed = timed(servers, models, request_jobs, store, Purpose.VALUE)
            if number:  # the first round warms up
                speeds[0].append(dialogue_speed)
                speeds[1].append(request_speed)
    ratios = [first / second for first, second in zip(*speeds, strict=True)]
    print(f"dialogues: {median(speeds[0]):,.0f} tokens/s; the same requests at once: {median(speeds[1]):,.0f}")
    print(f"ratio, median of {ROUNDS}: {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def timed(
    servers: Sequence[OwnServers],
    models: Sequence[Checkpoint],
    jobs: Sequence[SamplingJob],
    store: RolloutStore,
    purpose: Purpose,
) -> float:
    """Tokens per second."""
    schedulers = [EngineScheduler(server, model) for server, model in zip(servers, models, strict=True)]
    rollouts = RolloutExecutor(store, schedulers, purpose, 0)
    started = time.monotonic()
    rollouts.run_to_completion(jobs)
    return rollouts.usage.generated_tokens / (time.monotonic() - started)


def requests(codec: TurnCodec, plan: DialogueSampler, problem: Problem) -> list[SamplingJob]:
    """Requests for all sampled turns, independent of each other: as many samples of each prompt."""
    prompts, counts = codec.prompts(problem), Counter[tuple[int, TokenIds]]()
    for state in plan.dialogues:
        before = TokenIds()
        for turn_tokens in state.turns:
            prompt = prompts[turn_tokens.turn.speaker] + before + turn_tokens.token_ids[: turn_tokens.opening]
            counts[SPEAKERS.index(turn_tokens.turn.speaker), prompt] += 1
            before += turn_tokens.token_ids
    sampling = SAMPLING.model_copy(update={"max_tokens": codec.max_turn_tokens})
    return [
        SamplingJob(
            FullEstimate(1, count),
            lambda _, prompt=prompt: prompt,
            sampling,
            tuple,
            len(prompt),
            lambda _, scheduler=scheduler: scheduler,
            STOPS,
        )
        for (scheduler, prompt), count in counts.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
