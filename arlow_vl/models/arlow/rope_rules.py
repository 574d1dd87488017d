# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Rules for rotary parameters. transformers logs most mistakes and continues; here they are refused."""

import math
from typing import Any

from .spelling import did_you_mean

# The parameters that each rope_type of transformers requires, and those that it may have beside them.
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": (
        *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": ("original_max_position_embeddings", "attention_factor", "factor"),
    "llama3": ("original_max_position_embeddings",),
    "proportional": ("factor",),
}
EVERYWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
POSITIVE = ("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "mscale")
POSITIVE += ("mscale_all_dim",)


def keys_of(kind: str) -> tuple[str, ...]:
    """All keys that `rope_parameters` of this rope_type may hold."""
    return (*EVERYWHERE, *REQUIRED[kind], *OPTIONAL.get(kind, ()))


def refuse_unusable_rope(rope_parameters: dict[str, Any], head_dim: int, max_position_embeddings: int) -> None:
    """Refuses parameters that cannot work; transformers has completed them with `rope_type` and `rope_theta`.

    Raises:
        ValueError: naming the parameter and the rule.
    """
    given = {key: value for key, value in rope_parameters.items() if value is not None}
    kind = given.get("rope_type", "default")
    if kind not in REQUIRED:
        raise ValueError(f"rope_parameters: rope_type {kind!r} is unknown; {did_you_mean(kind, sorted(REQUIRED))}")
    known = keys_of(kind)
    for key in given:
        if key not in known:
            raise ValueError(f"rope_parameters: rope_type {kind!r} has no {key!r}; {did_you_mean(key, sorted(known))}")
    for key in REQUIRED[kind]:
        if key not in given:
            raise ValueError(f"rope_parameters: rope_type {kind!r} needs {key!r}; give {', '.join(REQUIRED[kind])}")
    _refuse_numbers_out_of_range(given)
    _refuse_misfits(given, kind, head_dim, max_position_embeddings)


def _refuse_numbers_out_of_range(given: dict[str, Any]) -> None:
    if not _is_number(given["rope_theta"]) or given["rope_theta"] <= 1:
        raise ValueError(f"rope_parameters: rope_theta must be a number above 1, got {given['rope_theta']!r}")
    if "factor" in given and not (_is_number(given["factor"]) and given["factor"] >= 1):
        raise ValueError(
            f"rope_parameters: factor must be a number of at least 1, got {given['factor']!r}; "
            "it says how many times longer texts may be than in pretraining"
        )
    for key in POSITIVE:
        if key in given and not (_is_number(given[key]) and given[key] > 0):
            raise ValueError(f"rope_parameters: {key} must be a positive number, got {given[key]!r}")
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        smaller, larger = given.get(low, 1), given.get(high, 32)  # YaRN's own defaults; Llama 3 needs both
        if (low in given or high in given) and smaller >= larger:
            raise ValueError(f"rope_parameters: {low} ({smaller}) must be below {high} ({larger})")


def _refuse_misfits(given: dict[str, Any], kind: str, head_dim: int, max_position_embeddings: int) -> None:
    partial = given.get("partial_rotary_factor", 1.0)
    if kind == "proportional":
        if not (_is_number(partial) and 0 <= partial <= 1):
            raise ValueError(f"rope_parameters: partial_rotary_factor must be between 0 and 1, got {partial!r}")
    elif partial != 1:
        raise ValueError(
            f"rope_parameters: partial_rotary_factor {partial!r} does not go with rope_type {kind!r}: Arlow turns all "
            "of head_dim; rope_type 'proportional' leaves channels unturned"
        )
    if kind == "dynamic" and head_dim < 4:
        raise ValueError(f"rope_parameters: rope_type 'dynamic' needs a head_dim of at least 4, got {head_dim}")
    for key in ("short_factor", "long_factor"):
        factors = given.get(key)
        if factors is None:
            continue
        if not isinstance(factors, list) or not all(_is_number(factor) and factor > 0 for factor in factors):
            raise ValueError(f"rope_parameters: {key} must be a list of positive numbers, got {factors!r}")
        if len(factors) != head_dim // 2:
            raise ValueError(
                f"rope_parameters: {key} has {len(factors)} entries and head_dim is {head_dim}; "
                f"it needs one for each pair of channels, {head_dim // 2}"
            )
    original = given.get("original_max_position_embeddings")
    if original is None:
        return
    if isinstance(original, bool) or not isinstance(original, int) or original < 2:
        raise ValueError(
            f"rope_parameters: original_max_position_embeddings must be an integer of at least 2, got {original!r}; "
            "left out, it is max_position_embeddings"
        )
    if original > max_position_embeddings and "factor" not in given:
        raise ValueError(
            f"rope_parameters: original_max_position_embeddings ({original}) must not exceed max_position_embeddings "
            f"({max_position_embeddings}): without a factor, rope_type {kind!r} takes their ratio; give factor"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
