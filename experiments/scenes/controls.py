"""Controls for scores on scenes: the nearest training image's caption, answers from the question or the image alone.

    python -m experiments.scenes.controls data/scenes --out experiments/scenes/controls.md

The nearest image has the highest cosine between colours of 16 x 16 cells, less their mean over training.
"""

import argparse
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float
from PIL import Image

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.samples import Sample, Text
from arlow_vl.data.scenes.grammar import parse_caption
from arlow_vl.data.scenes.questions import QuestionAnswer, open_questions
from arlow_vl.data.scenes.scene import Scene
from arlow_vl.data.scenes.splits import SPLITS
from arlow_vl.data.scenes.vocabulary import CONCEPTS
from arlow_vl.evaluation.metrics.scenes import SLOTS, answer_scores, scene_scores
from experiments.plain_controls import most_frequent, nearest_neighbour, question_prior

CELLS = 16
YES_NO = ("presence", "count yes/no", "relation yes/no")
OTHERS = ("count", "colour", "relation", "reading", "comparison")
OPEN = ("count", "colour", "relation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="folder that `arlow data scenes` filled")
    parser.add_argument("--out", type=Path, required=True, help="Markdown to write")
    args = parser.parse_args()
    tests = [split for split in SPLITS if split != "train" and list(args.scenes.glob(f"{split}-*.tar"))]
    train = list(samples(args.scenes, "train"))
    lines = [*caption_lines(args.scenes, train, tests), "", *answer_lines(args.scenes, train, tests)]
    lines += ["", *unheard_lines(args.scenes, tests)]
    args.out.write_text("\n".join([f"{len(train):,} training images.", "", *lines]) + "\n")


def caption_lines(folder: Path, train: Sequence[Sample], tests: Sequence[str]) -> list[str]:
    features = np.stack([cells(sample) for sample in train])
    mean = features.mean(axis=0)
    captions = [caption(sample) for sample in train]
    usual = most_frequent(captions)
    lines = [
        f"| split | images | whole scene | {' | '.join(SLOTS)} | named falsely | most frequent caption |",
        "| --- " * (len(SLOTS) + 5) + "|",
    ]
    for split in tests:
        its = list(samples(folder, split))
        scenes = [scene(sample) for sample in its]
        copied = nearest_neighbour(features - mean, captions, np.stack([cells(sample) for sample in its]) - mean)
        scores = scene_scores(copied, scenes)
        constant = scene_scores([usual] * len(its), scenes)
        slots = " | ".join(percent(scores.get(slot)) for slot in SLOTS)
        shares = f"{percent(scores['named falsely'])} | {percent(constant['whole scene'])}"
        lines.append(f"| {split} | {len(its):,} | {percent(scores['whole scene'])} | {slots} | {shares} |")
    return lines


def answer_lines(folder: Path, train: Sequence[Sample], tests: Sequence[str]) -> list[str]:
    """Scores the most frequent training answer to each wording, or for a new wording that to the kind of question."""
    known = list(asked([*train, *samples(folder / "comparisons", "train")]))
    lines = [f"| split | questions | {' | '.join(YES_NO + OTHERS)} |", "| --- " * (len(YES_NO + OTHERS) + 2) + "|"]
    for split in tests:
        its = list(asked([*samples(folder, split), *samples(folder / "comparisons", split)]))
        shares = " | ".join(percent(prior_score(known, its, kind)) for kind in YES_NO + OTHERS)
        lines.append(f"| {split} | {len(its):,} | {shares} |")
    return lines


def prior_score(known: Sequence[QuestionAnswer], questions: Sequence[QuestionAnswer], kind: str) -> float | None:
    its = [asked for asked in questions if asked.kind == kind]
    if not its:
        return None
    prior = question_prior([(a.question, a.answer) for a in known if a.kind == kind], [a.question for a in its])
    return answer_scores(prior, [a.answer for a in its], [kind] * len(its))[kind]


def unheard_lines(folder: Path, tests: Sequence[str]) -> list[str]:
    """Scores exact answers from the scene and the question without the names of its things."""
    lines = [f"| split | {' | '.join(OPEN)} |", "| --- " * (len(OPEN) + 1) + "|"]
    for split in tests:
        scenes = [scene(sample) for sample in samples(folder, split)]
        shares = (percent(fmean(x for of in scenes for x in unheard_shares(of, kind))) for kind in OPEN)
        lines.append(f"| {split} | {' | '.join(shares)} |")
    return lines


def unheard_shares(of: Scene, kind: str) -> list[float]:
    """Returns the chance of guessing each question about a scene, among the answers to its wording without names."""
    answers = defaultdict(set)
    questions = {asked for is_turned in (False, True) for asked in open_questions(of, is_turned) if asked.kind == kind}
    for asked in questions:
        answers[unheard(asked.question, of)].add(asked.answer)
    return [1 / len(answers[unheard(asked.question, of)]) for asked in questions]


def unheard(question: str, of: Scene) -> str:
    """Replaces names of things and words in a question; singular and plural stay distinct."""
    for group in of.groups:
        for name, blank in ((CONCEPTS[group.noun].nouns, "things"), (group.noun, "thing")):
            question = re.sub(rf"\b{name}\b", blank, question)
    return re.sub(r'word ".*?"', "word", question)


def samples(folder: Path, split: str) -> Iterator[Sample]:
    indexed = IndexedSamples(indexes_of(str(folder / f"{split}-*.tar")), ("caption", "question"))
    return (indexed.sample(number) for number in range(len(indexed)))


def cells(sample: Sample) -> Float[np.ndarray, " features"]:
    image = Image.open(io.BytesIO(read_image(sample.images[0]))).resize((CELLS, CELLS), Image.Resampling.BOX)
    return np.asarray(image, np.float32).ravel()


def caption(sample: Sample) -> str:
    return next(answer(text) for text in sample.texts if text.task == "caption")


def scene(sample: Sample) -> Scene:
    found = parse_caption(caption(sample))
    assert found is not None, sample.key
    return found


def asked(found: Sequence[Sample]) -> Iterator[QuestionAnswer]:
    for sample in found:
        for text in sample.texts:
            if text.task == "question":
                yield QuestionAnswer(text.messages[0]["content"][-1]["text"], answer(text), text.kind)


def answer(text: Text) -> str:
    return text.messages[-1]["content"]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
