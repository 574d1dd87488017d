"""Random records of every format: each is a text of a sample or counted under a reason, and there is no traceback."""

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from arlow_vl.data.formats.detect import Source, open_source
from arlow_vl.errors import DataError
from tests.data.formats.conftest import image_places
from tests.outside_data import JPEG, tar_of

REASON = re.compile(r"[a-z][a-z0-9_]*")
STRINGS = [*["a fox"] * 20, "<image>", "<image>\nWhat?", "", " ", "a\0b", "\ud800", "é", "x" * 11_000, "yes", "\ufeff"]
PATHS = [
    *["a.jpg", "b.png"] * 10,
    "b.png",
    "gone.jpg",
    "../a.jpg",
    "/etc/passwd",
    "",
    "sub",
    "data:,x",
    "http://x/a.jpg",
    "a\0",
    "\ud800",
]
IDS = [*[1, 2, 7] * 10, 3, "1", "7", None, True, [], {}, -1, 10**40, 1.5, "../x", "x" * 2000, "\ud800"]
ROLES = ["user", "user", "assistant", "assistant", "system", "human", "gpt", "tool", None, 3]


class Dice(random.Random):
    """Values as careful people write them, and now and then as nobody should."""

    def junk(self, depth: int = 0) -> Any:
        if depth < 2 and self.random() < 0.4:
            if self.random() < 0.5:
                return [self.junk(depth + 1) for _ in range(self.randint(0, 3))]
            return {self.choice(["text", "type", "answer", "url", "role"]): self.junk(depth + 1)}
        return self.choice([None, 0, 1.5, True, float("inf"), *STRINGS])

    def one(self, values: list[Any], share: float = 0.95) -> Any:
        return self.choice(values) if self.random() < share else self.junk()

    def record(self, **fields: Any) -> Any:
        """An object of fields, of which some are lacking or hold something else."""
        if self.random() < 0.03:
            return self.junk()
        return {
            name: value if self.random() < 0.96 else self.junk()
            for name, value in fields.items()
            if self.random() < 0.97
        }

    def listed(self, make, most: int = 8) -> Any:
        return [make() for _ in range(self.randint(0, most))]

    def part(self) -> Any:
        kind = self.one(["text", "image", "image_url", "audio"])
        return self.record(type=kind, text=self.one(STRINGS), image_url={"url": self.one(PATHS)})

    def content(self) -> Any:
        return self.one(STRINGS) if self.random() < 0.6 else self.listed(self.part, 3)

    def messages(self) -> Any:
        roles = [("user", "assistant")[n % 2] for n in range(self.choice([2, 2, 4, 3]))]
        return [{"role": self.one([role] * 200 + ROLES), "content": self.content()} for role in roles]

    def turns(self) -> Any:
        return [{"from": m["role"], "value": m["content"]} for m in self.messages()]


def written(value: Any) -> str:
    return json.dumps(value)


def conversations(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    records = [
        dice.record(
            images=dice.listed(lambda: dice.one(PATHS), 2),
            **{dice.choice(["messages", "conversations"]): dice.choice([dice.messages(), dice.turns()])},
        )
        if dice.random() < 0.6
        else dice.record(image=dice.one(PATHS), question=dice.one(STRINGS), answer=dice.one(STRINGS))
        for _ in range(20)
    ]
    path = folder / dice.choice(["r.jsonl", "r.json"])
    path.write_text("\n".join(map(written, records)) if path.suffix == ".jsonl" else written(records))
    return path, len(records)


def coco(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    images = dice.listed(lambda: dice.record(id=dice.one([1, 2, 7, *IDS]), file_name=dice.one(PATHS)))
    captions = [
        dice.record(image_id=dice.one(IDS), id=dice.one([*[n] * 40, *IDS]), caption=dice.one(STRINGS))
        for n in range(20)
    ]
    path = folder / "c.json"
    path.write_text(written({"images": images, "annotations": captions}))
    return path, len(captions)


def vqa(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    def answer() -> Any:
        return dice.record(answer=dice.one(STRINGS))

    questions = [
        dice.record(
            question_id=dice.one([*[n] * 40, *IDS]),
            image_id=dice.one(IDS),
            question=dice.one(STRINGS),
        )
        for n in range(20)
    ]
    annotations = [
        dice.record(
            question_id=n,
            answers=dice.listed(answer),
            multiple_choice_answer=dice.one(STRINGS),
            answer_type=dice.one(["other", "yes/no"]),
        )
        for n in range(20)
    ]
    (folder / "a_annotations.json").write_text(written({"annotations": annotations}))
    path = folder / "a_questions.json"
    path.write_text(written({"questions": questions, "data_subtype": dice.one(["train", "../x"])}))
    return path, None  # annotations of unknown questions count too


def gqa(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    entries = {
        str(n): dice.record(
            imageId=dice.one(IDS),
            question=dice.one(STRINGS),
            answer=dice.one(STRINGS),
            types=dice.junk(),
        )
        for n in range(20)
    }
    path = folder / "g.json"
    path.write_text(written(entries))
    return path, len(entries)


def textvqa(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    entries = [
        dice.record(
            image_id=dice.one(IDS),
            question_id=dice.one([*[n] * 40, *IDS]),
            question=dice.one(STRINGS),
            answers=dice.listed(lambda: dice.one(STRINGS)),
        )
        for n in range(20)
    ]
    path = folder / "t.json"
    path.write_text(written({"data": entries}))
    return path, len(entries)


def captions(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    rows = [[str(dice.one(PATHS)), str(dice.one(STRINGS)), *(["more"] * (dice.random() < 0.1))] for _ in range(20)]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image", "caption"], *rows])
    path = folder / "c.csv"
    path.write_bytes(buffer.getvalue().encode(errors="surrogatepass"))
    return path, len(rows)


def webdataset(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    members = []
    for n in range(20):
        images = dice.randint(0, 2)
        names = [f"{n}.jpg"] if images == 1 else [f"{n}.{i}.jpg" for i in range(images)]
        place = [{"type": "image"}] * dice.choice([images, images, 1])
        text = {"messages": [{"role": "user", "content": [*place, dice.part()]}, {"role": "assistant", "content": "x"}]}
        entry = dice.record(
            messages=dice.one([text["messages"], dice.messages()]),
            texts=dice.choices([text, {"document": place}, dice.junk()], k=dice.randint(0, 3)),
            document=dice.listed(dice.part, 3),
            caption=dice.one([None, *STRINGS]),
            questions=dice.listed(lambda: dice.record(question="?", answer=dice.one(STRINGS)), 3),
        )
        parts = [*((name, JPEG) for name in names), (f"{n}.json", written(entry).encode())]
        parts += [(f"{n}.{dice.choice(['txt', 'mask.png', '0.txt', '7.jpg'])}", b"x")] * (dice.random() < 0.3)
        members += parts
    dice.shuffle(members)
    path = folder / "a.tar"
    path.write_bytes(tar_of(*members))
    return path, None  # a member may be left out as a sample of its own


def sidecars(dice: Dice, folder: Path) -> tuple[Path, int | None]:
    for _ in range(20):
        name = (
            dice.choice("abcd.")
            + dice.choice(["", ".0", ".jpg"])
            + dice.choice([".jpg", ".PNG", ".txt", ".TXT", ".pdf"])
        )
        content = dice.choice(STRINGS).encode(errors="surrogatepass")
        (folder / name).write_bytes(content if name.lower().endswith("txt") else dice.choice([JPEG, JPEG, b""]))
    (folder / "z.txt").write_text("of no image")
    return folder, None


FORMATS = {f.__name__: f for f in (conversations, coco, vqa, gqa, textvqa, captions, webdataset, sidecars)}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", FORMATS)
def test_each_record_is_used_or_counted_under_a_reason(tmp_path, kind, seed):
    dice = Dice(f"{kind} {seed}")
    for name in ("a.jpg", "b.png", "1.jpg", "2.jpg", "7.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "sub").mkdir()
    path, records = FORMATS[kind](dice, tmp_path)
    source = open_source(path, format=kind)
    check(source, records)


def check(source: Source, records: int | None) -> None:
    samples = list(source.iterate())
    tally = source.tally
    for sample in samples:
        json.dumps(sample.fields, ensure_ascii=False, allow_nan=False).encode()
        sample.key.encode()
        assert sample.texts
        for text in sample.texts:
            assert image_places(text) == len(sample.images)
            assert bool(text.messages) != bool(text.document)
            json.dumps([text.messages, text.document, text.references], ensure_ascii=False).encode()
            for message in text.messages:
                assert message["content"]
                assert isinstance(message["content"], str) or message["role"] == "user"
    assert tally.samples == len(samples) == len({sample.key for sample in samples})
    assert tally.texts == sum(len(sample.texts) for sample in samples)
    assert all(REASON.fullmatch(bad.reason) for bad in [*tally.bad, *tally.bad_texts])
    if records is not None:
        assert tally.texts + len(tally.bad_texts) + sum(bad.members for bad in tally.bad) == records
    try:
        tally.check("source")
    except DataError as error:
        check_sentence(error)


def check_sentence(error: DataError) -> None:
    assert "\n" not in str(error)
    str(error).encode()


@pytest.mark.parametrize("seed", range(40))
def test_files_of_any_bytes_are_read_or_refused_in_a_sentence(tmp_path, seed):
    dice = Dice(seed)
    kind = dice.choice([name for name in FORMATS if name != "sidecars"])
    path, _ = FORMATS[kind](dice, tmp_path)
    data = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data))
        data[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
    path.write_bytes(data[: dice.randint(1, len(data))] if dice.random() < 0.3 else data)
    try:
        check(open_source(path, format=kind), None)
    except DataError as error:
        check_sentence(error)
