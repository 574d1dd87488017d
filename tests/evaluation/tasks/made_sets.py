"""Every shipped task's data in its true format: six images of one colour each, in one folder for all."""

import json
from pathlib import Path

from tests.evaluation.tasks.conftest import COLOURS, image_bytes, images, lines, write
from tests.outside_data import tar_of

NUMBERS = range(len(COLOURS))
COCO_NAME = "COCO_val2014_{:012d}.jpg"


def captions(number: int) -> list[str]:
    return [f"a {COLOURS[number]} image.", f"All of it is {COLOURS[number]}."]


def coco(pattern: str) -> dict:
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": pattern.format(n), "height": 32, "width": 32} for n in NUMBERS],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "caption": text} for n in NUMBERS for k, text in enumerate(captions(n))
        ],
    }


def karpathy() -> dict:
    return {
        "images": [
            {
                "filepath": "val2014",
                "sentids": [0, 1],
                "filename": COCO_NAME.format(n),
                "imgid": n,
                "split": "test" if n < 4 else "val",
                "sentences": [
                    {"tokens": text.lower().strip(".").split(), "raw": text, "imgid": n, "sentid": 2 * n + k}
                    for k, text in enumerate(captions(n))
                ],
                "cocoid": n,
            }
            for n in NUMBERS
        ],
        "dataset": "coco",
    }


def vqa(*, types: bool) -> tuple[dict, dict]:
    asked = [
        {"image_id": n, "question": question, "question_id": 10 * n + k}
        for n in NUMBERS
        for k, question in enumerate(("What color is it?", "Is it red?"))
    ]
    answered = []
    for entry in asked:
        colour = COLOURS[entry["image_id"]]
        is_open = entry["question"].startswith("What")
        answer = colour if is_open else "yes" if colour == "red" else "no"
        answers = [
            {"answer": answer if k else "blue", "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)
        ]
        facts = {"question_type": "what color", "answer_type": "other" if is_open else "yes/no"}
        answered.append(
            {"question_id": entry["question_id"], "image_id": entry["image_id"], "answers": answers, **facts}
            | ({"multiple_choice_answer": answer} if types else {})
        )
    questions = {"data_type": "mscoco", "data_subtype": "val2014", "questions": asked}
    return questions, {"data_subtype": "val2014", "annotations": answered}


def shard(split: str, *, scenes: bool = False) -> bytes:
    members = []
    for number, colour in enumerate(COLOURS):
        key = f"{split}-{number:06d}"
        shown = colour if colour in ("red", "blue", "green", "yellow") else "pink"
        caption = f"a {shown} car left of two blue cats" if scenes else captions(number)[0]
        members += [(f"{key}.png", image_bytes(colour)), (f"{key}.txt", caption.encode())]
        asked = [{"question": "What color is it?", "answer": colour, "kind": "other"}]
        asked.append({"question": "Is it red?", "answer": "yes" if colour == "red" else "no", "kind": "yes/no"})
        members.append((f"{key}.json", json.dumps({"questions": asked}).encode()))
    return tar_of(*members)


def pairs(split: str) -> bytes:
    """Each image beside the next one, and a question about both."""
    members = []
    for number, colour in enumerate(COLOURS):
        key, other = f"{split}-{number:06d}", COLOURS[number - 1]
        members += [(f"{key}.0.png", image_bytes(colour)), (f"{key}.1.png", image_bytes(other))]
        asked = {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": f"Which is {colour}?"}]}
        texts = [{"messages": [asked, {"role": "assistant", "content": "the first"}], "task": "question"}]
        members.append((f"{key}.json", json.dumps({"texts": texts}).encode()))
    return tar_of(*members)


def write_sets(root: Path) -> Path:
    """All data below one folder, as each task's header lays them out."""
    questions, annotations = vqa(types=True)
    ok_questions, ok_annotations = vqa(types=False)
    splits = ["train", *(f"test-{name}" for name in ("new", "pairs", "colours", "counts", "style", "drawings"))]
    return write(
        root,
        {
            **images("val2014/" + COCO_NAME),
            **images("val2017/{:012d}.jpg"),
            **images("val/VizWiz_val_{:08d}.jpg"),
            **images("val/nocaps{}.jpg"),
            **images("images/n{}.jpg"),
            **images("train_images/{:016x}.jpg"),
            "dataset_coco.json": karpathy(),
            "annotations/captions_val2017.json": coco("{:012d}.jpg"),
            "nocaps_val_4500_captions.json": coco("nocaps{}.jpg"),
            "v2_OpenEnded_mscoco_val2014_questions.json": questions,
            "v2_mscoco_val2014_annotations.json": annotations,
            "OpenEnded_mscoco_val2014_questions.json": ok_questions,
            "mscoco_val2014_annotations.json": ok_annotations,
            "testdev_balanced_questions.json": {
                f"2025{n}": {
                    "imageId": f"n{n}",
                    "question": "What color is it?",
                    "answer": COLOURS[n],
                    "fullAnswer": f"It is {COLOURS[n]}.",
                    "types": {"structural": "query", "semantic": "attr", "detailed": "colorO"},
                    "isBalanced": True,
                }
                for n in NUMBERS
            },
            "TextVQA_0.5.1_val.json": {
                "dataset_type": "val",
                "dataset_name": "textvqa",
                "data": [
                    {
                        "question_id": 34602 + n,
                        "image_id": f"{n:016x}",
                        "question": "what does it say?",
                        "question_tokens": ["what", "does"],
                        "answers": ["nokia"] * 9 + [COLOURS[n]],
                        "set_name": "val",
                    }
                    for n in NUMBERS
                ],
            },
            "val.json": [
                {
                    "image": f"VizWiz_val_{n:08d}.jpg",
                    "question": "What color is this?",
                    "answers": [{"answer": COLOURS[n], "answer_confidence": "yes"}] * 10,
                    "answer_type": "other",
                    "answerable": 1,
                }
                for n in NUMBERS
            ],
            **{
                f"coco_pope_{split}.json": lines(
                    [
                        {
                            "question_id": n + 1,
                            "image": COCO_NAME.format(n),
                            "text": f"Is there a {'car' if n % 2 else 'dog'} in the image?",
                            "label": "yes" if n % 3 else "no",
                        }
                        for n in NUMBERS
                    ]
                )
                for split in ("random", "popular", "adversarial")
            },
            **{f"scenes/{split}-000000.tar": shard(split, scenes=True) for split in splits},
            **{f"scenes/comparisons/{split}-000000.tar": pairs(split) for split in ("train", "test-new")},
            **{f"captions/{split}-000000.tar": shard(split) for split in ("train", "test-known", "test-novel")},
            **{f"easy-vqa/{split}-000000.tar": shard(split) for split in ("train", "test")},
            "text/validation.jsonl": lines(
                [{"text": f"The cat saw {n} big red dogs run over green hills."} for n in NUMBERS]
            ),
        },
    )
