import hashlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference import rollout_store
from models.inference.engine import Completion, Request
from models.inference.rollout_store import Purpose, RolloutStore, StoredCompletion, StoreError, completion_key
from reasoning.token_ids import TokenIds
from tests.models.fakes import fake_checkpoint

SAMPLING = Sampling(samples=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.stack)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store that does not exist yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store'}"
    return request.getfixturevalue("postgres")()


def rows(model: Checkpoint, key: bytes, *samples: int, value: int = 0) -> list[StoredCompletion]:
    return [
        StoredCompletion(key, n, model, Purpose.TRAIN, Completion(TokenIds((value, n)), n % 2 == 0)) for n in samples
    ]


def test_completions_are_found_by_key_in_sample_order(url: str, model: Checkpoint):
    assert RolloutStore(url).commit([*rows(model, b"a", 1, 0, 2), *rows(model, b"b", 0)])
    stored = RolloutStore(url).find([b"a", b"b", b"c"])
    assert stored[b"a"] == [Completion(TokenIds((0, n)), n != 1) for n in range(3)]
    assert (len(stored[b"b"]), stored[b"c"]) == (1, [])


def test_the_first_commit_is_kept(url: str, model: Checkpoint):
    store = RolloutStore(url)
    assert store.commit(rows(model, b"a", 0, 1))
    assert not store.commit(rows(model, b"a", 1, 2, value=9))
    assert [completion.token_ids.tolist() for completion in store.find([b"a"])[b"a"]] == [[0, 0], [0, 1], [9, 2]]


def test_many_keys_in_one_lookup(url: str, model: Checkpoint):
    store = RolloutStore(url)
    keys = [bytes([n // 256, n % 256]) for n in range(1500)]
    store.commit([row for key in keys for row in rows(model, key, 0)])
    assert all(len(found) == 1 for found in store.find(keys).values())


def test_a_claim_is_exclusive(url: str, model: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    first, other = RolloutStore(url), RolloutStore(url)
    assert first.claim([b"a", b"b"]) == {b"a", b"b"}
    assert other.claim([b"a", b"b", b"c"]) == {b"c"}
    assert first.claim([b"a"]) == {b"a"}  # renewal
    first.commit(rows(model, b"a", 0))
    assert other.claim([b"a", b"b"]) == {b"a"}  # a commit releases the claim
    first.release()
    assert other.claim([b"b"]) == {b"b"}
    monkeypatch.setattr(rollout_store, "CLAIM_SECONDS", -1.0)
    other.claim([b"b"])  # its run dies, and its claim expires
    assert first.claim([b"b"]) == {b"b"}


def test_seed_purpose_sampling_prompt_and_model_are_in_the_key(tmp_path: Path, model: Checkpoint):
    other = fake_checkpoint(tmp_path, {"model.embed_tokens.weight": [6, 8]})
    base = Request(TokenIds((1,)), SAMPLING, 4)
    hotter = replace(base, sampling=Sampling(temperature=0.7))
    identities = {
        completion_key(model, base, Purpose.TRAIN, 0),
        completion_key(model, base, Purpose.TRAIN, 1),
        completion_key(model, replace(base, stop=("a",)), Purpose.TRAIN, 0),
        completion_key(model, base, Purpose.BENCHMARK, 0),
        completion_key(model, hotter, Purpose.TRAIN, 0),
        completion_key(model, replace(base, prompt_ids=TokenIds((2,))), Purpose.TRAIN, 0),
        completion_key(other, base, Purpose.TRAIN, 0),
    }
    assert len(identities) == 7
    more = replace(base, sampling=Sampling(samples=9))
    assert completion_key(model, more, Purpose.TRAIN, 0) == completion_key(model, base, Purpose.TRAIN, 0)


def test_default_settings_do_not_change_the_key(model: Checkpoint):
    """The key equals that of stores older than these settings."""
    head = f'["{model.fingerprint}", {{"max_tokens": 768, "temperature": 0.6, "top_p": 0.95}}, 0, "train"]'
    expected = hashlib.sha256(head.encode() + b"\0" + (1).to_bytes(4, "little")).digest()
    base = Request(TokenIds((1,)), Sampling(), 4)
    assert completion_key(model, base, Purpose.TRAIN, 0) == expected
    assert completion_key(model, replace(base, sampling=Sampling(top_k=0, min_p=0)), Purpose.TRAIN, 0) == expected
    for other in (Sampling(top_k=20), Sampling(min_p=0.1)):
        assert completion_key(model, replace(base, sampling=other), Purpose.TRAIN, 0) != expected


def test_a_store_of_version_1_is_migrated(url: str, model: Checkpoint):
    blob, literal = ("BLOB", "x'{}'") if url.startswith("sqlite") else ("BYTEA", "'\\x{}'::bytea")
    with create_engine(url).begin() as old:
        old.execute(
            text(
                f"CREATE TABLE completions (identity {blob}, sample INTEGER, model VARCHAR(64), purpose VARCHAR(32), "
                f"token_ids {blob}, finished BOOLEAN, PRIMARY KEY (identity, sample))"
            )
        )
        values = f"{literal.format('61')}, 0, 'm', 'train', {literal.format('07000000')}, true"
        old.execute(text(f"INSERT INTO completions VALUES ({values})"))
    for _ in range(2):
        brought = RolloutStore(url)
        assert brought.find([b"a"])[b"a"] == [Completion(TokenIds((7,)), True)]
        assert brought.claim([b"b"]) == {b"b"}
        brought.commit(rows(model, b"b", 0))
        assert [(holding.completions, holding.last is None) for holding in brought.summarise()][-1] == (1, True)
        brought.release()


def test_a_store_of_a_newer_version_is_refused(url: str):
    RolloutStore(url)
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE schema SET version = 99"))
    with pytest.raises(StoreError, match="made by a newer version"):
        RolloutStore(url)


def test_summary_faults_and_deletion(url: str, tmp_path: Path, model: Checkpoint):
    other = fake_checkpoint(tmp_path / "other", {"model.embed_tokens.weight": [6, 8]})
    store = RolloutStore(url)
    store.commit([*rows(model, b"a", 0, 1), *rows(other, b"b", 0)])
    assert {(h.model, h.purpose, h.completions, h.bytes) for h in store.summarise()} == {
        (model.fingerprint, "train", 2, 16),
        (other.fingerprint, "train", 1, 8),
    }
    assert store.find_faults() == []
    store.commit(rows(model, b"c", 2))
    assert store.find_faults() == [f"{b'c'.hex()}: 1 samples, the last is number 2"]
    assert store.delete_unused(keep=[model.fingerprint], before=0) == 0
    assert store.delete_unused(keep=[model.fingerprint], before=2**40) == 1
    assert {holding.model for holding in store.summarise()} == {model.fingerprint}


def test_several_runs_may_open_a_new_store_at_once(url: str, model: Checkpoint):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(RolloutStore, [url] * 8))
        assert [opened.commit(rows(model, bytes([n]), 0)) for n, opened in enumerate(stores)] == [True] * 8
        assert sum(len(found) for found in stores[0].find([bytes([n]) for n in range(8)]).values()) == 8


def test_claims_of_a_process_that_has_gone_are_released_wherever_it_was(url: str, model: Checkpoint):
    """Those of another process stay, also one whose name begins alike."""
    store = RolloutStore(url)
    gone, other = RolloutStore(url), RolloutStore(url)
    gone._owner, other._owner = "node_7:boot:1/41/abc", "node_7:boot:1/411/def"
    assert gone.claim([b"a", b"b"]) == {b"a", b"b"}
    assert other.claim([b"c"]) == {b"c"}
    assert store.claim([b"a", b"b", b"c"]) == set()
    store.release_claims_of("node_7:boot:1/41")
    assert store.claim([b"a", b"b", b"c"]) == {b"a", b"b"}


def test_of_two_that_sample_side_by_side_none_releases_the_others_claims(url: str, model: Checkpoint):
    store = RolloutStore(url)
    one, other = store.with_own_claims(), store.with_own_claims()
    assert one.claim([b"a"]) == {b"a"}
    assert other.claim([b"a", b"b"]) == {b"b"}
    one.release()
    assert store.claim([b"b"]) == set()
    assert other.claim([b"a"]) == {b"a"}


def test_concurrent_runs_share_claims_and_commits(url: str, model: Checkpoint):
    keys = [bytes([n]) for n in range(40)]
    sampled: Counter[bytes] = Counter()

    def run(seed: int) -> None:
        first, order = RolloutStore(url), random.Random(seed)
        while missing := [key for key, found in first.find(keys).items() if not found]:
            order.shuffle(missing)
            granted = first.claim(missing[:10])
            still = [key for key, found in first.find(list(granted)).items() if not found] if granted else []
            sampled.update(still)
            if still:
                first.commit([row for key in order.sample(still, len(still)) for row in rows(model, key, 0)])
            first.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert sampled == Counter(keys)
