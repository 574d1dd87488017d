"""Policy of a recipe: for each component of a model its treatment, learning rate and blocks."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arlow_vl.models.arlow.spelling import did_you_mean

Component = Literal["vision", "projector", "cross_attention", "decoder"]
Treatment = Literal["frozen", "train", "lora"]
COMPONENTS: tuple[Component, ...] = typing.get_args(Component)
TREATMENTS: tuple[Treatment, ...] = typing.get_args(Treatment)


@dataclass(frozen=True, kw_only=True)
class PartPolicy:
    """Treatment of one component, in a recipe also a single word. Tied embeddings belong to the decoder."""

    treatment: Treatment
    """frozen; train; or lora: low-rank adapters on its frozen linear layers, merged into them at the end (peft)."""
    lr: float | None = None
    """Peak learning rate; null: optim.lr."""
    weight_decay: float | None = None
    """Decay of its matrices; null: optim.weight_decay."""
    blocks: tuple[int, int] | None = None
    """Range [first, end) of treated blocks, counted from 0: blocks of the encoder (stages of a feature-map net), or
    layers of the decoder. The rest of the component is frozen. null: all of it is treated."""
    rank: int | None = None
    """Rank of the adapters; null: 16."""
    alpha: float | None = None
    """Output of the adapters is scaled by alpha / rank; null: twice the rank."""
    targets: tuple[str, ...] | None = None
    """Last names of the linear layers that get adapters, such as q_proj; null: every one."""

    @property
    def is_trained(self) -> bool:
        """True if anything in the component is trained."""
        return self.treatment != "frozen"


Policy = Mapping[Component, PartPolicy]


def read_policy(words: Mapping[str, Any]) -> dict[Component, PartPolicy]:
    """Returns the policy of a recipe, whose values are words, mappings of fields, or `PartPolicy` objects.

    Raises:
        ValueError: a component, key or treatment is unknown, or a value is invalid.
    """
    policy: dict[Component, PartPolicy] = {}
    for component, value in words.items():
        if component not in COMPONENTS:
            raise ValueError(f"policy has no {component}; {did_you_mean(component, COMPONENTS)}")
        if not isinstance(value, PartPolicy):
            fields = value if isinstance(value, Mapping) else {"treatment": value}
            value = _part(f"policy.{component}", {key: item for key, item in fields.items() if item is not None})
        if component == "projector" and value.blocks is not None:
            raise ValueError("policy.projector.blocks is given, but a projector has no blocks; leave it out")
        policy[component] = value
    return policy


def _part(where: str, given: Mapping[str, Any]) -> PartPolicy:
    known = [field.name for field in dataclasses.fields(PartPolicy)]
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has no {key}; {did_you_mean(str(key), known)}")
    treatment = given.get("treatment")
    if treatment not in TREATMENTS:
        raise ValueError(f"{where} is {treatment}, not one of {', '.join(TREATMENTS)}")
    for key in given:
        if key in ("rank", "alpha", "targets") and treatment != "lora":
            raise ValueError(f"{where}.{key} is given, but only lora has it; leave it out")
        if key in ("lr", "weight_decay", "blocks") and treatment == "frozen":
            raise ValueError(f"{where}.{key} is given, but the component is frozen; leave it out")
        is_right, what = VALUES.get(key, (lambda value: True, ""))
        if not is_right(given[key]):
            raise ValueError(f"{where}.{key} must be {what}, got {given[key]!r}")
    lists = {key: tuple(given[key]) for key in ("blocks", "targets") if key in given}
    return PartPolicy(**{**given, **lists})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(end) is int for end in value)
    return is_pair and 0 <= value[0] < value[1]


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda value: _is_number(value) and value > 0, "a number over 0"),
    "alpha": (lambda value: _is_number(value) and value > 0, "a number over 0"),
    "weight_decay": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "rank": (lambda value: type(value) is int and value > 0, "a whole number over 0"),
    "blocks": (_is_range, "[first, end] with first < end"),
    "targets": (_are_names, "a list of names such as q_proj"),
}
"""Check of each key's value, and what it must be, for the error."""
