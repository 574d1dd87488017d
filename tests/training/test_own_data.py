"""Every way that docs/data.md shows to train on one's own data, with data of that layout."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from arlow_vl.cli import main
from tests.tiny_runs import SAMPLES, sentences, write_image_text_recipe

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SHOWN = [
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    if block.startswith(("sources:", "packing:"))
]


def name_of(shown: dict) -> str:
    return "+".join(source["name"] for source in shown["sources"])


def foxes(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(SAMPLES / "fox.jpg", folder / name)


def write_photos() -> None:
    foxes(Path("photos"), "a.jpg", "b.jpg", "c.jpg")
    Path("photos/metadata.csv").write_text("file_name,text\na.jpg,A fox.\nb.jpg,A red fox.\nc.jpg,Snow.\n")


def write_coco() -> None:
    foxes(Path("train2017"), "1.jpg", "2.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]
    captions = [{"id": n, "image_id": 1 + n % 2, "caption": f"A fox, number {n}."} for n in range(5)]
    Path("annotations").mkdir()
    Path("annotations/captions_train2017.json").write_text(json.dumps({"images": images, "annotations": captions}))


def write_vqa() -> None:
    foxes(Path("train2014"), "COCO_train2014_000000000009.jpg")
    asked = [{"question_id": n, "image_id": 9, "question": f"Is it {n}?"} for n in range(3)]
    answers = [{"answer": word} for word in ["yes"] * 7 + ["no"] * 3]
    told = [{"question_id": n, "image_id": 9, "multiple_choice_answer": "yes", "answers": answers} for n in range(3)]
    name = "v2_OpenEnded_mscoco_train2014_questions.json"
    Path(name).write_text(json.dumps({"data_subtype": "train2014", "questions": asked}))
    Path("v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": told}))


def write_chats() -> None:
    foxes(Path("photos"), "a.jpg", "b.jpg")
    turns = ["<image>What is it?", "A fox.", "And this? <image>", "The same fox."]
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    record = {"messages": messages, "images": ["a.jpg", "b.jpg"]}
    Path("chats.jsonl").write_text((json.dumps(record) + "\n") * 4)


def write_chats_and_text() -> None:
    write_chats()
    Path("corpus").mkdir()
    pq.write_table(pa.table({"text": sentences(30)}), "corpus/0.parquet")


WRITERS = {
    "photos": write_photos,
    "coco": write_coco,
    "vqa": write_vqa,
    "chats": write_chats,
    "chats+replay": write_chats_and_text,
}


def test_the_page_shows_every_way():
    assert [name_of(shown) for shown in SHOWN] == list(WRITERS)


@pytest.mark.parametrize("shown", SHOWN, ids=name_of)
def test_a_run_starts_from_the_page(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    WRITERS[name_of(shown)]()
    steps = 12 if "packing" in shown else 2
    run = {"max_steps": steps, "validate_every": steps, "checkpoint_every": steps, "validation_samples": 2}
    write_image_text_recipe(tmp_path, run=run | {"threads": 1}, cache_features=None, **shown)
    assert main(["fit", "--config", "image_text.yaml"]) == 0
    log = [json.loads(line) for line in Path("run/steps.jsonl").read_text().splitlines()]
    names = {key.partition(":")[0] for step in log for key in step["keys"]}
    assert len(log) == steps and names == {source["name"] for source in shown["sources"]}


def test_a_packed_run_is_the_same_with_workers_that_read_ahead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_chats_and_text()
    run = {"max_steps": 3, "validate_every": 3, "checkpoint_every": 3, "threads": 1, "validation_samples": 2}
    write_image_text_recipe(tmp_path, run=run, cache_features=None, **SHOWN[-1])
    steps = {}
    for workers in ("0", "2"):
        assert main(["fit", "--config", "image_text.yaml", "--run.workers", workers, "--run_dir", workers]) == 0
        steps[workers] = Path(workers, "steps.jsonl").read_text()
    assert steps["0"] == steps["2"]
