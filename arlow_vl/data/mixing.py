"""Choice of the source of each next sample: every stretch of the stream keeps the shares, without randomness.

Sources are served like queues on one line by worst-case fair queueing (Bennett and Zhang, 1996): among those that have
not got more than their share so far, the one whose next sample would be finished first if each were served all the time
at its rate. By samples every prefix is within one sample of each share; by tokens, within the longest sample. Weights
1 and 2: b a b b a b ...

All is integers, shares in units of 1/2^32, so that a stream is the same on every machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ONE = 2**32
"""All shares together, in their unit."""

Number = int | float
Weights = Mapping[str, Number]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the sources in the stream. They need not add up to 1."""

    weights: Weights | Mapping[int, Weights]
    """Weights by source name; or by optimizer step such weights, between which they change linearly."""
    by: Literal["samples", "tokens"] = "samples"
    """Unit of the shares."""
    epochs: Weights = field(default_factory=dict)
    """Epochs, by source name, after which a source is used up and the others take its share; others are endless."""

    def __post_init__(self) -> None:
        for step, weights in self.schedule:
            where = f"weights of step {step}" if len(self.schedule) > 1 else "weights"
            if step < 0 or weights.keys() != self.schedule[0][1].keys():
                raise ValueError(f"{where}: steps count from 0, and every step names the same sources")
            for name, weight in weights.items():
                if not 0 <= weight < float("inf"):
                    raise ValueError(f"{where}: the weight of {name} must be a number from 0 on, got {weight}")
            if not any(weights.values()):
                raise ValueError(f"{where}: no source has a weight over 0, so there is nothing to draw")
        for name, epochs in self.epochs.items():
            if name not in self.schedule[0][1] or not 0 < epochs < float("inf"):
                raise ValueError(f"epochs of {name} must be a number over 0 for a source that has a weight: {epochs}")

    @property
    def schedule(self) -> list[tuple[int, Weights]]:
        """The weights by step, the first step first; one entry where they stay as they are."""
        steps: dict[Any, Any] = dict(self.weights)
        if not steps:
            raise ValueError("weights is empty; give each source its weight")
        scheduled = [isinstance(value, Mapping) for value in steps.values()]
        if not any(scheduled):
            return [(0, steps)]
        if not all(scheduled) or not all(isinstance(step, int) for step in steps):
            raise ValueError("weights maps either names to numbers, or steps to such weights, not both")
        return sorted(steps.items())

    def at(self, step: int) -> dict[str, Number]:
        """Returns the weights of an optimizer step."""
        points = self.schedule
        after = next((number for number, (first, _) in enumerate(points) if first > step), len(points))
        if after in (0, len(points)):
            return dict(points[max(0, after - 1)][1])
        (first, old), (last, new) = points[after - 1 : after + 1]
        part = (step - first) / (last - first)
        return {name: old[name] + part * (new[name] - old[name]) for name in old}

    def describe(self) -> str:
        """`shares of samples: a 75%, b 25%`; where they change, those of each step that is given."""
        parts = []
        for step, weights in self.schedule:
            total = sum(weights.values())
            shares = ", ".join(f"{name} {100 * weight / total:.3g}%" for name, weight in weights.items())
            parts.append(f"step {step:,} {shares}" if len(self.schedule) > 1 else shares)
        return f"shares of {self.by}: {'; '.join(parts)}"


def weights_by_size(sizes: Mapping[str, int], *, temperature: Number = 1.0) -> dict[str, float]:
    """Weights as sizes to the power of 1 / temperature: 1 keeps them, a higher one lifts small sources.

    As in multilingual pretraining (Arivazhagan et al., 2019, section 4.2).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be over 0, got {temperature}; 1 keeps the sizes")
    return {name: size ** (1 / temperature) for name, size in sizes.items()}


def scheduled(
    weights: Mapping[str, float | dict[int, float]],
) -> dict[str, float] | dict[int, dict[str, float]]:
    """Returns the weights of all sources at every step for which one of them is given."""
    steps = sorted({step for weight in weights.values() if isinstance(weight, dict) for step in weight})
    if not steps:
        return {name: weight for name, weight in weights.items() if not isinstance(weight, dict)}
    return {step: {name: _weight_at(weight, step) for name, weight in weights.items()} for step in steps}


def _weight_at(weight: float | dict[int, float], step: int) -> float:
    """Interpolates a weight between the steps that are given; it is constant before the first and after the last."""
    if not isinstance(weight, dict):
        return weight
    before = max((s for s in weight if s <= step), default=min(weight))
    after = min((s for s in weight if s >= step), default=max(weight))
    if before >= after:
        return weight[before]
    return weight[before] + (weight[after] - weight[before]) * (step - before) / (after - before)


def integer_shares(weights: Sequence[Number]) -> list[int]:
    """Shares in units of 1/2^32 that add up to it; what rounding leaves goes to the largest."""
    total = sum(weights)
    shares = [int(weight / total * ONE) for weight in weights]
    largest = max(range(len(shares)), key=shares.__getitem__)
    shares[largest] += ONE - sum(shares)
    return shares


@dataclass
class Draws:
    """Samples drawn from each source so far, and how far each source is behind its share."""

    drawn: list[int]
    """Samples of each source so far."""
    behind: list[int]
    """Amount still due to each source, in 1/2^32 of a sample or token; the sum is 0."""

    @classmethod
    def none(cls, sources: int) -> "Draws":
        return cls([0] * sources, [0] * sources)

    def next_source(self, shares: Sequence[int], costs: Sequence[int]) -> int:
        """Returns the source whose turn it is.

        Args:
            shares: Share of each source, in 1/2^32; 0: it is not drawn from.
            costs: Cost of each source's next sample: 1, or its tokens.
        """
        behind = self.behind
        some = [source for source, share in enumerate(shares) if share]
        some = [source for source in some if behind[source] >= 0] or some
        return min(some, key=lambda source: (costs[source] * ONE - behind[source]) * ONE // shares[source])

    def draw(self, source: int, shares: Sequence[int], cost: int) -> int:
        """Takes the next sample of a source; returns its number in the source."""
        for other, share in enumerate(shares):
            self.behind[other] += share * cost
        self.behind[source] -= ONE * cost
        self.drawn[source] += 1
        return self.drawn[source] - 1

    def copy(self) -> "Draws":
        return Draws(list(self.drawn), list(self.behind))

    def plain(self) -> dict[str, list[int]]:
        return {"drawn": list(self.drawn), "behind": list(self.behind)}
