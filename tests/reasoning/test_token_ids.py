"""Token ids behave as the tuple of the same integers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reasoning.records import Demonstration
from reasoning.token_ids import TokenIds

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=20)


@given(IDS, IDS, st.slices(20))
def test_they_are_a_sequence(ids: list[int], more: list[int], part: slice):
    made = TokenIds(ids)
    assert (len(made), list(made), made.tolist()) == (len(ids), ids, ids)
    assert [made[index] for index in range(len(ids))] == ids
    assert made[part].tolist() == ids[part]
    assert (made + TokenIds(more)).tolist() == (made + more).tolist() == ids + more
    assert (tuple(more) + made).tolist() == more + ids
    assert TokenIds.join([made, more, made]).tolist() == ids + more + ids
    assert (made == TokenIds(more)) == (ids == more)
    assert TokenIds.frombytes(made.tobytes()) == made


@given(IDS)
def test_equal_ones_have_one_hash(ids: list[int]):
    whole = TokenIds([7, *ids])
    assert {whole[1:]: "found"}[TokenIds(ids)] == "found"
    assert whole[1:] != tuple(ids)


@given(IDS)
def test_records_take_them_as_lists_and_give_them_as_lists(ids: list[int]):
    row = Demonstration(problem_id="p", sample=0, prompt_ids=TokenIds(ids), completion_ids=TokenIds())
    assert Demonstration.model_validate(row.model_dump()) == row
    assert Demonstration.model_validate_json(row.model_dump_json()) == row
    assert row.model_dump(mode="json")["prompt_ids"] == ids


@pytest.mark.parametrize("wrong", [[-1], [2**32], ["a"], [1.5], 7])
def test_what_is_no_token_id_is_refused(wrong: object):
    with pytest.raises(ValidationError):
        Demonstration.model_validate({"problem_id": "p", "sample": 0, "prompt_ids": wrong, "completion_ids": []})


@pytest.mark.parametrize("wrong", [[-1], [2**32], [np.int64(-1)], [1.5], ["1"], "12", [None]])
def test_nothing_is_wrapped_or_rounded(wrong: Any):
    with pytest.raises((OverflowError, TypeError)):
        TokenIds(wrong)


def test_four_bytes_each():
    assert len(TokenIds(range(1000)).tobytes()) == 4000
    whole = TokenIds(range(1000))
    assert np.shares_memory(whole.array, whole[10:20].array)


@pytest.mark.parametrize("ids", [TokenIds((1, 2)), TokenIds((1, 2, 3))[:2], TokenIds.join([(1,), (2,)])])
def test_nobody_can_change_them(ids: TokenIds):
    with pytest.raises(ValueError, match="read-only"):
        ids.array[0] = 7
