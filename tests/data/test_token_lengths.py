"""Lengths are counted once, lie in a mapped file, and plan the rows that the tokenizer would, without one."""

import shutil
from pathlib import Path

import pytest

from arlow_vl.data.images import DecodedImages
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.loader import Packing, ResumableLoader
from arlow_vl.data.mixing import Mixture
from arlow_vl.data.rows import RowBudget
from arlow_vl.data.sample_dataset import SampleDataset
from arlow_vl.data.sources import Source
from arlow_vl.data.token_lengths import TokenLengths, token_lengths
from tests.tiny_runs import SAMPLES, tiny_tokenizer
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform


@pytest.fixture(scope="module")
def transform():
    return ImageTransform(VisionEncoder("test_vit", image_size=32).data_config)


@pytest.fixture
def shard(tmp_path):
    return Path(shutil.copy(SAMPLES / "easy-vqa" / "train-000000.tar", tmp_path))


def dataset_of(shard, transform, *, max_length: int = 64, one_text: bool = False) -> SampleDataset:
    samples = IndexedSamples(indexes_of(shard), ["question"])
    return SampleDataset(samples, tiny_tokenizer(), DecodedImages(transform), max_length=max_length, one_text=one_text)


def tokenised(dataset) -> int:
    """How many texts have been tokenised."""
    return len(dataset.encoded_texts)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("token-lengths-*.bin"))


@pytest.mark.parametrize("max_length", [40, 50, 64])  # at 40 some prompts leave no room for an answer
@pytest.mark.parametrize("workers", [1, 2])
def test_they_are_those_of_the_tokenizer(shard, transform, tmp_path, max_length, workers):
    plain, known = (dataset_of(shard, transform, max_length=max_length) for _ in range(2))
    known.count_tokens(tmp_path / "run", workers=workers)
    again = dataset_of(shard, transform, max_length=max_length)
    again.count_tokens(tmp_path / "run")
    expected = [plain.length(number) for number in range(len(plain))]
    assert any(sum(tokens) for tokens, _ in expected)
    assert [known.length(number) for number in range(len(plain))] == expected
    assert [again.length(number) for number in range(len(plain))] == expected
    assert tokenised(again) == 0
    assert [path.parent.name for path in files_of(tmp_path)] == [".arlow-index"]


def test_another_length_or_other_data_are_counted_anew(shard, transform, tmp_path):
    for max_length in (60, 64):
        dataset_of(shard, transform, max_length=max_length).count_tokens(tmp_path / "run")
    assert len(files_of(tmp_path)) == 2
    shutil.copy(SAMPLES / "easy-vqa" / "validation-000000.tar", shard)
    other = dataset_of(shard, transform)
    other.count_tokens(tmp_path / "run")
    assert len(files_of(tmp_path)) == 3
    assert tokenised(other) > 0


def loader_of(dataset, workers: int) -> ResumableLoader:
    packing = Packing(
        budget=RowBudget(tokens=512, images=4),
        rows_per_batch=2,
        mixture=Mixture(weights={"questions": 1}),
        rows_per_step=2,
    )
    source = Source(name="questions", dataset=dataset)
    texts = lambda rows: {"rows": [[(sample.texts, chosen) for sample, chosen in row] for row in rows]}  # noqa: E731
    return ResumableLoader([source], texts, seed=3, num_batches=24, workers=workers, packing=packing)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rows_are_the_same_with_and_without(shard, transform, tmp_path, workers):
    plain, known = dataset_of(shard, transform), dataset_of(shard, transform)
    known.count_tokens(tmp_path / "run")
    assert list(loader_of(known, workers)) == list(loader_of(plain, workers))


def test_a_plan_tokenises_nothing_and_a_text_that_is_read_is_tokenised_once(shard, transform, tmp_path):
    dataset_of(shard, transform).count_tokens(tmp_path / "run")
    dataset = dataset_of(shard, transform)
    dataset.count_tokens(tmp_path / "run")
    loader = loader_of(dataset, 0)
    assert loader.windows is not None and loader.windows.plan(loader.windows.first_state()) is not None
    assert tokenised(dataset) == 0
    batches = list(loader)
    assert tokenised(dataset) <= sum(len(texts) for batch in batches for row in batch["rows"] for texts, _ in row)


def test_a_folder_that_cannot_be_written_leaves_them_to_the_next(tmp_path):
    (tmp_path / "file").write_text("no folder")
    folders = [tmp_path / "file" / "below", tmp_path / "run"]
    lengths = [((3, 0), 1), ((), 0), ((70_000,), 2)]
    found = token_lengths("a" * 64, folders, 3, lengths.__getitem__)
    assert [found[number] for number in range(3)] == lengths
    assert [path.parent.name for path in files_of(tmp_path)] == ["run"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    lengths = [((3, 0), 1), ((4,), 0)]
    token_lengths("a" * 64, [tmp_path], 2, lengths.__getitem__)
    (path,) = files_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    found = token_lengths("a" * 64, [tmp_path], 2, lengths.__getitem__)
    assert [found[number] for number in range(2)] == lengths
    assert len(TokenLengths(path)) == 2
