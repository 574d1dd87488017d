"""Scores captions and answers about scenes against the exact content of the image.

image      a red car left of two blue cats
caption    two blue dogs left of a red car
whole      wrong, as some slot is wrong
things     1 of 2: the car is named, the cats are not; the dogs are not in the image (CHAIR)
relation   wrong: the car is not right of the other part
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.data.scenes.grammar import groups_named, nouns_named, parse_caption
from arlow_vl.data.scenes.scene import Part, Scene, Word
from arlow_vl.evaluation.metrics.vqa import normalise_answer

SLOTS = ("thing", "colour", "count", "relation", "word")
NAMED_FALSELY = "named falsely"
PARTS = ("whole scene", *SLOTS, "parts swapped", NAMED_FALSELY)
"""Scores of a caption, in the order of `scene_points`."""


def scene_scores(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Returns the share, 0 to 1, of each of `PARTS`, given one caption per scene; a slot that no scene has is left out.

    Raises:
        ValueError: there are no captions, or the numbers differ.
    """
    if not len(captions) == len(scenes) > 0:
        raise ValueError(f"captions ({len(captions)}) and scenes ({len(scenes)}) must be as many, and some")
    points = zip(PARTS, scene_points(captions, scenes).sum(axis=0).tolist(), strict=True)
    return {part: count / max(1, total) for part, (count, total) in points if total or part == NAMED_FALSELY}


def scene_points(captions: Sequence[str], scenes: Sequence[Scene]) -> Float[np.ndarray, "captions parts 2"]:
    """Returns for each caption and each of `PARTS` how much is right (in the last two: wrong), and out of how much."""
    points = np.zeros((len(captions), len(PARTS), 2))
    for row, (caption, scene) in enumerate(zip(captions, scenes, strict=True)):
        described = parse_caption(caption)
        named = nouns_named(caption)
        points[row, 0] = described == scene, 1
        for slot, is_right in _slots(caption, described, scene):
            points[row, 1 + SLOTS.index(slot)] += is_right, 1
        points[row, -2] = _is_swapped(described, scene), 1
        points[row, -1] = sum(scene.group_of(noun) is None for noun in named), len(named)
    return points


def answer_scores(predictions: Sequence[str], answers: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """Returns the share of exact answers by kind of question, after VQA's normalisation of both.

    Raises:
        ValueError: there are no predictions, or the numbers differ.
    """
    if not len(predictions) == len(answers) == len(kinds) > 0:
        raise ValueError(
            f"predictions ({len(predictions)}), answers ({len(answers)}) and kinds ({len(kinds)}) must be as many"
        )
    right = defaultdict(list)
    for prediction, answer, kind in zip(predictions, answers, kinds, strict=True):
        right[kind].append(normalise_answer(prediction) == normalise_answer(answer))
    return {kind: _share(right[kind]) for kind in sorted(right)}


def _slots(caption: str, described: Scene | None, scene: Scene) -> list[tuple[str, bool]]:
    """Returns each slot of the scene, and whether the caption has it right.

    Things, colours and counts belong to the group with the same noun, whatever its place; a relation needs both parts
    in their order.
    """
    groups, nouns = groups_named(caption), nouns_named(caption)
    slots = []
    for group in scene.groups:
        alike = [other for other in groups if other.noun == group.noun]
        slots.append(("thing", group.noun in nouns))
        slots.append(("colour", any(other.colour == group.colour for other in alike)))
        slots.append(("count", any(other.count == group.count for other in alike)))
    if scene.word is not None:
        slots.append(("word", described is not None and described.word == scene.word))
    if scene.relation is not None:
        is_right = described is not None and (described.relation, _names(described)) == (scene.relation, _names(scene))
        slots.append(("relation", is_right))
    return slots


def _names(scene: Scene) -> list[str]:
    """Returns the nouns of the parts, empty for a written word."""
    return [_name(part) for part in scene.parts]


def _name(part: Part) -> str:
    return "" if isinstance(part, Word) else part.noun


def _is_swapped(described: Scene | None, scene: Scene) -> bool:
    return described is not None and described != scene and Scene(described.parts[::-1], described.relation) == scene


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
