"""Choice of some of many places: spread evenly, and at random within each part."""

import random
from itertools import pairwise


def stratified_places(count: int, wanted: int) -> list[int]:
    """Returns `wanted` of `count` places in their order, one of each equal part; all where there are no more.

    The same numbers give the same places everywhere. They are drawn, as every k-th place would meet a period of the
    data: POPE asks six questions about an image, three whose answer is yes and three no, so every sixth is a yes.
    """
    wanted, dice = min(wanted, count), random.Random(0)
    bounds = [part * count // wanted for part in range(wanted)] + [count]
    return [low + int(dice.random() * (high - low)) for low, high in pairwise(bounds)]
