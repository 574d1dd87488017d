"""The tests' own check of annotations refuses what jaxtyping's refuses."""

import dataclasses
from collections.abc import Iterator, Sequence

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int
from torch import Tensor

from tests.shapes import checked
from vision.projector import PlaceEmbedding

THREE_BY_TWO, TWO_BY_THREE, WHOLE = torch.zeros(3, 2), torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.long)


def of_one_shape(a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"] | None = None) -> int:
    return 0


def transposed(a: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    return a if a[0, 0] else a.T


def of_lists(a: Sequence[Float[Tensor, "rows columns"]], b: Float[Tensor, " rows"]) -> None: ...


def counted(a: Int[Tensor, "rows columns"], number: int = 0) -> "int":
    return number


def plain(a: int, *names: str, **numbers: float) -> str:
    return a if names else str(a)


def numbers(a: int) -> Iterator[int]:
    yield a


ONES = torch.ones(3, 2)
CALLS = [
    (of_one_shape, (THREE_BY_TWO, THREE_BY_TWO), True),
    (of_one_shape, (THREE_BY_TWO, None), True),
    (of_one_shape, (THREE_BY_TWO, TWO_BY_THREE), False),
    (of_one_shape, (WHOLE,), False),
    (transposed, (THREE_BY_TWO,), True),
    (transposed, (ONES,), False),  # what comes back is as it was
    (of_lists, ([THREE_BY_TWO, THREE_BY_TWO], torch.zeros(3)), True),
    (of_lists, ([THREE_BY_TWO], torch.zeros(2)), False),
    (counted, (WHOLE, 3), True),
    (counted, (WHOLE, "3"), False),
    (counted, (WHOLE, None), False),
    (plain, (3,), True),
    (plain, (3, "a"), False),
    (plain, (3, 4), False),
    (numbers, (3,), True),
    (numbers, ("3",), False),
]


def is_taken(function, arguments) -> bool:
    try:
        result = function(*arguments)
        list(result if isinstance(result, Iterator) else ())
    except jaxtyping.TypeCheckError:
        return False
    return True


THEIRS = {function: jaxtyping._decorator.jaxtyped(function, typechecker=beartype) for function, *_ in CALLS}


@pytest.mark.parametrize(("function", "arguments", "taken"), CALLS)
def test_a_call_is_refused_where_jaxtyping_refuses_it(function, arguments, taken):
    assert is_taken(checked(function), arguments) is taken
    assert is_taken(THEIRS[function], arguments) is taken


def test_names_of_axes_are_those_of_one_call():
    @checked
    def outer(a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
        assert is_taken(checked(of_one_shape), (TWO_BY_THREE, TWO_BY_THREE))
        assert not is_taken(checked(of_one_shape), (TWO_BY_THREE, THREE_BY_TWO))
        return a.T

    assert is_taken(outer, (THREE_BY_TWO, THREE_BY_TWO))
    assert not is_taken(outer, (THREE_BY_TWO, TWO_BY_THREE))


@checked
@dataclasses.dataclass
class Pair:
    a: Float[Tensor, " rows"]
    b: Float[Tensor, " rows"]

    @classmethod
    @checked
    def of(cls, a: Float[Tensor, "2 rows"]) -> "Pair":
        return cls(*a)

    @staticmethod
    @checked
    def rows(a: Float[Tensor, "2 rows"]) -> int:
        return a.shape[1]

    @property
    @checked
    def first(self) -> Float[Tensor, ""]:
        return self.a


def test_methods_and_what_a_dataclass_is_made_of_are_checked():
    assert Pair.of(TWO_BY_THREE).b.shape == (3,) and Pair.rows(TWO_BY_THREE) == 3
    assert not is_taken(Pair, (torch.zeros(2), torch.zeros(3)))
    assert not is_taken(Pair.of, (THREE_BY_TWO,)) and not is_taken(Pair.rows, (THREE_BY_TWO,))
    assert not is_taken(lambda pair: pair.first, (Pair.of(TWO_BY_THREE),))


def test_the_modules_of_the_project_are_checked():
    assert PlaceEmbedding(8)(torch.zeros(3, 2)).shape == (3, 8)
    assert not is_taken(PlaceEmbedding(8), (torch.zeros(3, 3),))
