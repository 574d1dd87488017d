"""Random draws that are the same on every machine, in every version of Python, and by any number of processes."""

from collections.abc import Sequence
from hashlib import sha256
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A sequence of random draws that is seeded by names alone, such as (seed, split, number).

    It uses only `Random.random`, the one method whose sequence Python promises to keep.
    """

    def __init__(self, *names: object) -> None:
        digest = sha256("\n".join(map(str, names)).encode()).digest()
        self._random = Random(int.from_bytes(digest)).random

    def below(self, count: int) -> int:
        """Returns one of 0 ... count - 1."""
        return int(self._random() * count)

    def between(self, first: int, last: int) -> int:
        """Returns one of first ... last."""
        return first + self.below(last - first + 1)

    def coin(self) -> bool:
        return self.below(2) == 1

    def choose(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in items]
