"""Which GPUs replicas and trainer get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.engine import Engine
from models.inference import devices
from models.inference.devices import TooFewGpus, beside_trainer, described, replica_gpus, server_gpus, visible_gpus

EIGHT = tuple("01234567")


@pytest.mark.parametrize(
    ("settings", "gpus", "groups"),
    [
        ({}, EIGHT, [(gpu,) for gpu in EIGHT]),
        ({"tensor_parallel_size": 4}, EIGHT, [("0", "1", "2", "3"), ("4", "5", "6", "7")]),
        ({"tensor_parallel_size": 3}, EIGHT, [("0", "1", "2"), ("3", "4", "5")]),  # two are left over
        ({"replicas": 2}, ("GPU-a", "GPU-b", "GPU-c"), [("GPU-a",), ("GPU-b",)]),
        ({}, ("5",), [("5",)]),
        ({}, (), [()]),
        ({"replicas": 3}, (), [(), (), ()]),
    ],
)
def test_each_replica_has_gpus_of_its_own(
    settings: dict[str, int], gpus: tuple[str, ...], groups: list[tuple[str, ...]]
):
    assert replica_gpus(Engine(**settings), gpus) == groups  # type: ignore[arg-type]


@given(
    size=st.integers(1, 9),
    replicas=st.none() | st.integers(1, 9),
    gpus=st.lists(st.text("ab01"), unique=True, max_size=9),
)
def test_no_gpu_is_given_twice_and_none_is_invented(size: int, replicas: int | None, gpus: list[str]):
    engine = Engine(tensor_parallel_size=size, replicas=replicas)
    try:
        groups = replica_gpus(engine, gpus)
    except TooFewGpus:
        assert size * (replicas or 1) > len(gpus)
        return
    given_out = [gpu for group in groups for gpu in group]
    assert given_out == gpus[: len(given_out)]
    assert len(groups) == (replicas or max(1, len(gpus) // size))
    assert not gpus or {len(group) for group in groups} == {size}


def test_too_few_gpus_are_named_with_the_settings():
    with pytest.raises(TooFewGpus, match=r"size \(4\) × engine.replicas \(2\) needs 8 GPUs.*3 are there"):
        replica_gpus(Engine(tensor_parallel_size=4, replicas=2), ("0", "1", "2"))
    with pytest.raises(TooFewGpus, match="0 are there"):
        replica_gpus(Engine(tensor_parallel_size=2), ())


def test_the_trainer_shares_a_single_gpu_and_else_has_the_first():
    assert beside_trainer(EIGHT) == (("0",), tuple("1234567"))
    assert beside_trainer(("3",)) == (("3",), ("3",))
    assert beside_trainer(()) == ((), ())


def test_the_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ()  # the CPU build
    monkeypatch.setattr(devices, "on_cpu", lambda: False)
    assert visible_gpus() == server_gpus() == ("2", "5")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert visible_gpus() == ()
    monkeypatch.setenv("BREVITY_SERVER_GPUS", "1,2")
    assert server_gpus() == ("1", "2")


def test_the_rule_is_told_in_a_line():
    pairs = replica_gpus(Engine(tensor_parallel_size=2), EIGHT)
    assert described(pairs, 1) == "4 replicas of each model, on GPUs 0+1, 2+3, 4+5, 6+7"
    assert described([("0",)], 2) == "1 replica of each model, on GPUs 0, each GPU shared by 2 servers"
    assert described([(), ()], 2) == "2 replicas of each model, on the CPU"
