"""Token ids as a sequence of four bytes each. It knows numpy. It must not know tokenizers, models or files."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Ids = NDArray[np.uint32]


class TokenIds(Sequence[int]):
    """Immutable token ids. A slice shares memory with the whole; `+` copies, and takes any sequence of integers."""

    __slots__ = ("array",)

    def __init__(self, ids: Iterable[int] = ()):
        """Raises OverflowError for an id below 0 or above 2**32 - 1, and TypeError for what is no integer."""
        # numpy itself would wrap and round in silence.
        self.array: Ids = ids.array if isinstance(ids, TokenIds) else np.frombuffer(array("I", ids), dtype=np.uint32)
        self.array.setflags(write=False)

    @classmethod
    def of(cls, ids: Ids) -> TokenIds:
        """Wraps an array, which cannot be changed any more."""
        made = cls.__new__(cls)
        made.array = ids
        ids.setflags(write=False)
        return made

    @classmethod
    def frombytes(cls, content: bytes) -> TokenIds:
        """The inverse of `tobytes`."""
        return cls.of(np.frombuffer(content, dtype=np.uint32))

    @classmethod
    def join(cls, parts: Iterable[Sequence[int]]) -> TokenIds:
        """All parts, one after the other."""
        arrays = [TokenIds(part).array for part in parts]
        return cls.of(np.concatenate(arrays)) if arrays else cls()

    def tobytes(self) -> bytes:
        return self.array.tobytes()

    def tolist(self) -> list[int]:
        return self.array.tolist()

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...
    def __getitem__(self, index: int | slice) -> int | TokenIds:
        found = self.array[index]
        return TokenIds.of(found) if isinstance(index, slice) else int(found)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def __add__(self, more: Sequence[int]) -> TokenIds:
        return TokenIds.join((self, more))

    def __radd__(self, before: Sequence[int]) -> TokenIds:
        return TokenIds.join((before, self))

    def __eq__(self, other: object) -> bool:
        """Only token ids are equal to token ids: a tuple of the same integers has another hash."""
        return isinstance(other, TokenIds) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash(self.tobytes())

    def __repr__(self) -> str:
        return f"TokenIds({self.tolist()})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        _ = source, handler
        listed = core_schema.no_info_after_validator_function(
            cls, core_schema.list_schema(core_schema.int_schema(ge=0, lt=2**32))
        )
        either = core_schema.union_schema([core_schema.is_instance_schema(cls), listed], mode="left_to_right")
        return core_schema.json_or_python_schema(
            json_schema=listed,
            python_schema=either,
            serialization=core_schema.plain_serializer_function_ser_schema(cls.tolist, when_used="json"),
        )
