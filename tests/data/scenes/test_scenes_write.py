"""A folder of scenes is the same however it is made, and training reads it as it is."""

import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.data.images import DecodedImages
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.images import read_image
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.sample_dataset import SampleDataset
from arlow_vl.data.scenes import write
from arlow_vl.data.scenes.grammar import caption_of, parse_caption
from arlow_vl.data.scenes.samples import scene_of
from arlow_vl.data.scenes.splits import SPLITS
from arlow_vl.errors import DataError
from tests.data.formats.conftest import image_places
from tests.data.scenes.made_drawings import made_drawings
from tests.tiny_runs import tiny_tokenizer
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform

SIZES = dict.fromkeys(SPLITS, 8) | {"train": 24}


@pytest.fixture(scope="module")
def drawings():
    return made_drawings()


@pytest.fixture(scope="module")
def folder(drawings, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "scenes"
    write.write_scenes(drawings, out, SIZES, workers=1)
    return out


def bytes_of(folder):
    """All but the indexes that reading leaves."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".arlow-index" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def jsons(path):
    return {name: json.loads(data) for name, data in members(path).items() if name.endswith(".json")}


def test_the_bytes_are_the_same_with_several_processes(drawings, folder, tmp_path):
    write.write_scenes(drawings, tmp_path / "again", SIZES, workers=3)
    assert bytes_of(tmp_path / "again") == bytes_of(folder)


def test_an_interrupted_run_goes_on_to_the_same_bytes(drawings, folder, tmp_path):
    out = tmp_path / "again"
    told = []

    def interrupt(done, total):
        told.append((done, total))
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write_scenes(drawings, out, SIZES, progress=interrupt)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert told == [(24, 80), (32, 80), (40, 80)]
    write.write_scenes(drawings, out, SIZES)
    assert bytes_of(out) == bytes_of(folder)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.parametrize(
    "damage", [lambda data: data[:5000] + b"x" + data[5001:], lambda data: data[:5000], lambda data: b""]
)
@pytest.mark.parametrize("place", [".", "comparisons"])
def test_a_damaged_shard_is_made_again_and_the_others_are_kept(drawings, folder, tmp_path, damage, place):
    out = shutil.copytree(folder, tmp_path / "again")
    path = out / place / "test-new-000000.tar"
    path.write_bytes(damage(path.read_bytes()))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar") if path.name != "test-new-000000.tar"}
    write.write_scenes(drawings, out, SIZES)
    assert bytes_of(out) == bytes_of(folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("index", ["", "[]", "{}"])
def test_shards_that_no_index_json_knows_are_made_again(drawings, folder, tmp_path, index):
    out = shutil.copytree(folder, tmp_path / "again")
    (out / "index.json").write_text(index)
    (out / "train-000000.tar").write_bytes(b"")
    write.write_scenes(drawings, out, SIZES)
    assert bytes_of(out) == bytes_of(folder)


def test_another_seed_gives_other_scenes(drawings, folder, tmp_path):
    write.write_scenes(drawings, tmp_path / "other", {"train": 24}, seed=1)
    texts = [
        {d for n, d in members(f / "train-000000.tar").items() if n.endswith("txt")}
        for f in (folder, tmp_path / "other")
    ]
    assert texts[0] != texts[1]


def test_more_scenes_begin_with_the_same_ones(drawings, folder, tmp_path):
    write.write_scenes(drawings, tmp_path / "more", {"train": 30})
    more = members(tmp_path / "more" / "train-000000.tar")
    assert members(folder / "train-000000.tar").items() <= more.items()


def test_large_splits_are_several_shards(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "TWINS_PER_SHARD", 3)
    assert write.write_scenes(drawings, tmp_path / "s", {"train": 15}) == {"train": 16}
    assert [len(jsons(path)) for path in sorted((tmp_path / "s").glob("train-*.tar"))] == [6, 6, 4]


def test_a_sample_tells_its_scene_in_words_and_in_boxes(folder):
    for split in SPLITS:
        found = members(folder / f"{split}-000000.tar")
        for name, fields in jsons(folder / f"{split}-000000.tar").items():
            key = name.removesuffix(".json")
            scene = scene_of(fields)
            caption = found[f"{key}.txt"].decode()
            assert caption == caption_of(scene)
            assert parse_caption(caption) == scene
            counts = Counter(thing["noun"] for thing in fields["inventory"] if thing["noun"])
            assert counts == {group.noun: group.count for group in scene.groups}
            assert Image.open(io.BytesIO(found[f"{key}.png"])).size == (128, 128)
            assert fields["split"] == split
            assert f"{fields['twin']}.png" in found
    with pytest.raises(KeyError):
        scene_of({})


def test_a_comparison_has_the_images_of_twins(folder):
    single, compared = (members(folder / sub / "test-new-000000.tar") for sub in (".", "comparisons"))
    assert len(jsons(folder / "comparisons" / "test-new-000000.tar")) == 4
    for number in range(4):
        for place in range(2):
            image = f"test-new-{2 * number + place:06d}.png"
            assert compared[f"test-new-{number:06d}.{place}.png"] == single[image]
    assert len(jsons(folder / "comparisons" / "train-000000.tar")) == 6  # of twelve twins


def tasks_of(path, *tasks):
    samples = IndexedSamples(indexes_of(str(path)), tasks)
    return [samples.sample(number) for number in range(len(samples))]


def test_training_reads_captions_and_questions_as_they_are(folder):
    indexes = indexes_of(str(folder / "train-*.tar"))
    assert [index.header.bad for index in indexes] == [{}]
    captions = tasks_of(folder / "train-*.tar", "caption")
    assert len(captions) == 24
    assert all(parse_caption(text.messages[1]["content"]) for sample in captions for text in sample.texts)
    questions = [text for sample in tasks_of(folder / "train-*.tar", "question") for text in sample.texts]
    assert {"presence", "count", "colour"} <= {text.kind for text in questions}
    described = tasks_of(folder / "train-*.tar", "conversation")
    assert len(described) == 24
    assert {text.kind for sample in described for text in sample.texts} == {"description"}
    assert read_image(captions[0].images[0]).startswith(b"\x89PNG")


def test_training_reads_comparisons_as_questions_and_as_conversations(folder):
    path = folder / "comparisons" / "test-new-*.tar"
    for task in ("question", "conversation"):
        samples = tasks_of(path, task)
        assert len(samples) == 4
        for sample in samples:
            assert len(sample.images) == 2
            assert {image_places(text) for text in sample.texts} == {2}
    assert {text.kind for sample in tasks_of(path, "question") for text in sample.texts} == {"comparison"}


@pytest.mark.parametrize(
    ("shards", "task", "images"),
    [("train-*", "caption", 1), ("train-*", "question", 1), ("comparisons/train-*", "conversation", 2)],
)
def test_the_dataset_of_a_run_takes_every_text(folder, shards, task, images):
    transform = ImageTransform(VisionEncoder("test_vit", image_size=32).data_config)
    samples = IndexedSamples(indexes_of(str(folder / f"{shards}.tar")), (task,))
    dataset = SampleDataset(samples, tiny_tokenizer(), DecodedImages(transform), max_length=256, one_text=True)
    for number in range(min(len(dataset), 12)):
        item = dataset[number]
        assert len(item.images) == images
        assert any(label >= 0 for label in item.texts[0].labels)


def test_the_index_json_knows_the_shards(folder, capsys):
    shards = sorted(map(str, [*folder.glob("*.tar"), *folder.glob("comparisons/*.tar")]))
    assert main(["data", "verify", *shards]) == 0
    assert " samples can be used, 0 skipped\n" in capsys.readouterr().out
    assert json.loads((folder / "index.json").read_text())["license"] == "CC0-1.0"


def test_a_split_without_drawings_is_left_out(drawings, tmp_path):
    emoji = replace(drawings, drawings=tuple(d for d in drawings.drawings if d.style != "stamp"))
    made = write.write_scenes(emoji, tmp_path / "s", dict.fromkeys(SPLITS, 2))
    assert set(SPLITS) - set(made) == {"test-drawings"}


def test_a_folder_of_other_files_is_refused(drawings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files; name an empty folder"):
        write.write_scenes(drawings, tmp_path, SIZES)


def test_a_folder_of_other_scenes_is_refused(drawings, folder):
    with pytest.raises(DataError, match="holds scenes of another seed; name an empty folder, or remove this one"):
        write.write_scenes(drawings, folder, SIZES, seed=5)


def test_a_folder_grows_to_what_it_would_have_been_and_does_not_shrink(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "TWINS_PER_SHARD", 3)
    few, more = dict.fromkeys(SPLITS, 4) | {"train": 8}, dict.fromkeys(SPLITS, 4) | {"train": 16, "test-new": 12}
    write.write_scenes(drawings, tmp_path / "once", more)
    write.write_scenes(drawings, tmp_path / "grown", few)
    whole = (tmp_path / "grown" / "train-000000.tar").stat().st_mtime_ns
    write.write_scenes(drawings, tmp_path / "grown", more)
    assert bytes_of(tmp_path / "grown") == bytes_of(tmp_path / "once")
    assert (tmp_path / "grown" / "train-000000.tar").stat().st_mtime_ns == whole
    with pytest.raises(DataError, match="holds scenes of more images in some split; name"):
        write.write_scenes(drawings, tmp_path / "grown", few)


def test_the_command_says_what_lacks(tmp_path, capsys):
    assert main(["data", "scenes", "--root", str(tmp_path), "--out", str(tmp_path / "s")]) == 3
    error = capsys.readouterr().err
    assert error.startswith("arlow: ")
    assert "is missing; `arlow data fetch --root" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_the_command_refuses_no_images(capsys):
    assert main(["data", "scenes", "--out", "s", "--train", "0"]) == 2
    assert "must be a whole number of at least 1" in capsys.readouterr().err
