"""Twins as samples: images, captions, questions, and the inventory that answers are scored by.

train-000012.png  train-000012.txt  train-000012.json       an image of a scene
train-000012.0.png  train-000012.1.png  train-000012.json   two images to compare, in the folder `comparisons`
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from arlow_vl.data.index.records import compact
from arlow_vl.data.samples import TextTask, about_images
from arlow_vl.data.scenes.descriptions import claims_described, comparisons_described, parts_described
from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.grammar import caption_of
from arlow_vl.data.scenes.paint import Painter, Thing
from arlow_vl.data.scenes.png import png_bytes
from arlow_vl.data.scenes.questions import Compared, QuestionAnswer, comparisons, questions_of_twins
from arlow_vl.data.scenes.scene import Group, Part, Scene, Word
from arlow_vl.data.scenes.splits import Split, draw_scene, draw_twin

COMPARED = 2
"""In training one pair of twins in so many is a comparison too; in all other splits every pair is."""
Member = tuple[str, bytes]


class Painted(NamedTuple):
    """A scene with its image and the questions about it."""

    scene: Scene
    png: bytes
    things: list[Thing]
    ground: str
    asked: list[QuestionAnswer]
    described: list[QuestionAnswer]


class Twins(NamedTuple):
    painted: tuple[Painted, Painted]
    compared: list[Compared]
    """Empty if the two are not compared."""


def make_twins(painter: Painter, seed: int, split: Split, number: int) -> Twins:
    """Returns the twins of a number, which do not depend on what else is made."""
    draws = Draws("scenes", seed, split, number)
    nouns = tuple(sorted(painter.drawings))
    first = draw_scene(draws, split, nouns)
    scenes = (first, draw_twin(draws, split, first, nouns))
    if draws.coin():
        scenes = scenes[::-1]
    asked = questions_of_twins(draws, *scenes)
    claims = Draws("claims", seed, split, number)  # separate, so that claims do not change images or questions
    painted = []
    for scene, twin, its in zip(scenes, scenes[::-1], asked, strict=True):
        pixels, things, ground = painter.paint(draws, scene)
        described = [*parts_described(scene, twin), *claims_described(claims, split, scene)]
        painted.append(Painted(scene, png_bytes(pixels), things, ground, its, described))
    is_compared = split != "train" or number % COMPARED == 0
    return Twins((painted[0], painted[1]), comparisons(draws, *scenes) if is_compared else [])


def members_of_twins(twins: Twins, split: Split, number: int, license: str) -> Iterator[Member]:
    """Yields names and bytes of two samples with an image each."""
    for place, painted in enumerate(twins.painted):
        key = f"{split}-{2 * number + place:06d}"
        yield f"{key}.png", painted.png
        yield f"{key}.txt", caption_of(painted.scene).encode()
        facts = {
            **_facts(split, license),
            "twin": f"{split}-{2 * number + 1 - place:06d}",
            **inventory(painted),
            "questions": [asked._asdict() for asked in painted.asked],
            "texts": [_text(asked, "conversation") for asked in painted.described],
        }
        yield f"{key}.json", compact(facts)


def members_of_comparison(twins: Twins, split: Split, number: int, license: str) -> Iterator[Member]:
    """Yields names and bytes of a sample of two images: questions, descriptions and a conversation."""
    if not twins.compared:
        return
    key = f"{split}-{number:06d}"
    for place, painted in enumerate(twins.painted):
        yield f"{key}.{place}.png", painted.png
    texts = [_text(_asked(compared), "question", images=2) for compared in twins.compared]
    described = [*_described_whole(twins), *comparisons_described(twins.compared)]
    texts += [_text(asked, "conversation", images=2) for asked in described]
    texts.append({"messages": _conversation(twins), "task": "conversation"})
    facts = {**_facts(split, license), "images": [inventory(painted) for painted in twins.painted], "texts": texts}
    yield f"{key}.json", compact(facts)


def _text(asked: QuestionAnswer, task: TextTask, images: int = 1) -> dict[str, Any]:
    messages = about_images(images, question=asked.question, answer=asked.answer)
    return {"messages": messages, "task": task, "kind": asked.kind}


def _asked(compared: Compared) -> QuestionAnswer:
    return QuestionAnswer(compared.question, compared.answer, "comparison")


def inventory(painted: Painted) -> dict[str, Any]:
    """Returns exactly what an image shows: the scene in its parts, and each thing with the box of its pixels."""
    scene = {"parts": [_part_facts(part) for part in painted.scene.parts], "relation": painted.scene.relation}
    return {"scene": scene, "ground": painted.ground, "inventory": [thing._asdict() for thing in painted.things]}


def scene_of(fields: Mapping[str, Any]) -> Scene:
    """Returns the scene in a sample's .json, or in one of the "images" of a comparison's."""
    scene = fields["scene"]
    parts = (Word(part["word"]) if "word" in part else Group(**part) for part in scene["parts"])
    return Scene(tuple(parts), scene["relation"])


def _part_facts(part: Part) -> dict[str, Any]:
    return part._asdict() if isinstance(part, Group) else {"word": part.text}


def _facts(split: Split, license: str) -> dict[str, str]:
    return {"source": "scenes", "license": license, "split": split}


def _described_whole(twins: Twins) -> Iterator[QuestionAnswer]:
    for which, painted in zip(("first", "second"), twins.painted, strict=True):
        yield QuestionAnswer(f"What does the {which} image show?", caption_of(painted.scene), "description")


def _conversation(twins: Twins) -> list[dict[str, Any]]:
    first, second = (caption_of(painted.scene) for painted in twins.painted)
    turns = [*about_images(2, question="What does the first image show?", answer=first)]
    for question, answer in (("And the second?", second), *((c.question, c.answer) for c in twins.compared[:1])):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns
