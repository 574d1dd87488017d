"""easy-VQA: synthetic images of one shape with questions. Its test split is its own; validation is cut from train."""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import EASY_VQA
from arlow_vl.data.fetch.shard_files import Sample
from arlow_vl.data.fetch.splits import VALIDATION, hash_fraction

FOLDER = "easy_vqa/data/"


def read_easy_vqa(folder: Path) -> dict[str, list[Sample]]:
    """Returns the samples by split: one for each image, with all its questions."""

    def wanted(name: str) -> bool:
        return name.startswith(FOLDER) and (name.endswith("/questions.json") or "/images/" in name)

    files = {name.removeprefix(FOLDER): data for name, data in read_members(folder / EASY_VQA.file, wanted)}
    samples = defaultdict(list)
    for part in ("train", "test"):
        questions = defaultdict(list)
        for question, answer, image in json.loads(files[f"{part}/questions.json"]):
            questions[image].append(labelled(question, answer))
        for name in sorted(files):
            path = PurePosixPath(name)
            if path.parent == PurePosixPath(part, "images"):
                sample = make_sample(part, int(path.stem), files[name], questions[int(path.stem)])
                is_validation = part == "train" and hash_fraction(sample.key, "split") < VALIDATION
                samples["validation" if is_validation else part].append(sample)
    return dict(samples)


def labelled(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer, "kind": "yes/no" if answer in ("yes", "no") else "other"}


def make_sample(part: str, number: int, png: bytes, questions: list[dict[str, str]]) -> Sample:
    key = f"easyvqa-{part}-{number:04d}"
    fields = {
        "source": "easy-vqa",
        "license": EASY_VQA.license,
        "group": key,
        "style": "easy-vqa",
        "questions": questions,
    }
    text = "\n".join(f"{question['question']} {question['answer']}" for question in questions)
    return Sample(key=key, extension="png", image=png, text=text, fields=fields)
