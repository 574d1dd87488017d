"""Captions and questions out of real shards, as the batches that the model takes."""

import json
from dataclasses import replace

import pytest
import torch

from arlow_vl.data.image_text import (
    DecodedImages,
    Example,
    ImageTextCollate,
    ImageTextDataset,
    cache_images,
    caption_examples,
    count_cut,
    fit_into_rows,
    question_examples,
    with_room,
)
from arlow_vl.data.loader import ResumableLoader, SequentialLoader, Source
from arlow_vl.data.prompts import about_image, encode_prompt
from arlow_vl.data.shards import scan_shards
from arlow_vl.errors import DataError
from tests.tiny_runs import SAMPLES, tiny_tokenizer
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform

PAD, END, IMAGE = 3, 6, 7


@pytest.fixture(scope="module")
def encoder():
    return VisionEncoder("test_vit", image_size=32).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def transform(encoder):
    return ImageTransform(encoder.data_config)


@pytest.fixture
def scan():
    return scan_shards([SAMPLES / "captions" / "train-000000.tar"])


@pytest.fixture
def dataset(transform):
    def dataset(examples, max_length: int = 64, images=None) -> ImageTextDataset:
        images = images or DecodedImages(transform)
        return ImageTextDataset(examples, tiny_tokenizer(), images, max_length=max_length)

    return dataset


def spoil(scan, index: int):
    """The image's bytes are read from a place in the shard where no image begins."""
    scan.samples[index] = replace(scan.samples[index], image_offset=scan.samples[index].image_offset + 7)
    return scan.samples[index]


def test_a_caption_follows_its_image(scan, dataset):
    item = dataset(caption_examples(scan.samples))[0]
    assert tiny_tokenizer().decode(item.ids) == (
        f"<|startoftext|><|im_start|>user\n<image><|im_end|>\n<|im_start|>assistant\n{scan.samples[0].text}<|im_end|>\n"
    )


def test_every_question_is_an_example_with_a_key_of_its_own(scan, dataset):
    questions = [entry for sample in scan.samples for entry in sample.questions]
    examples = dataset(question_examples(scan.samples))
    assert len(examples) == len(questions)
    assert len({examples.key(i) for i in range(len(examples))}) == len(questions)
    text = tiny_tokenizer().decode(examples[0].ids)
    question, answer = questions[0].question, questions[0].answer
    assert f"<image>{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>" in text


def test_the_fingerprint_tells_other_texts_and_lengths(scan, dataset):
    captions = caption_examples(scan.samples)
    same, shorter, fewer = dataset(captions), dataset(captions, 32), dataset(captions[1:])
    changed = dataset([captions[0]._replace(messages=about_image(answer="other")), *captions[1:]])
    assert dataset(captions).fingerprint == same.fingerprint
    assert len({d.fingerprint for d in (same, shorter, fewer, changed)}) == 4


@pytest.fixture
def items(scan, dataset) -> list:
    """Captions and questions of different lengths."""
    data = dataset(caption_examples(scan.samples[:4]) + question_examples(scan.samples[4:7]))
    return [data[i] for i in range(len(data))]


def documents(batch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels between the places where positions start again, row by row."""
    found = []
    for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            found.append((ids[start:end].tolist(), labels[start:end].tolist()))
    return found


def test_every_example_is_a_document_of_a_row(items, transform):
    batch = ImageTextCollate(DecodedImages(transform), pad_token_id=PAD)(items)
    found = [document for document in documents(batch) if document[0][0] != PAD]
    assert sorted(found) == sorted((item.ids, item.labels) for item in items)
    assert batch["num_tokens"] == sum(len(item.ids) for item in items)


def test_padding_is_a_document_that_is_not_learnt(items, transform):
    batch = ImageTextCollate(DecodedImages(transform), pad_token_id=PAD)(items)
    padding = [(ids, labels) for ids, labels in documents(batch) if ids[0] == PAD]
    assert padding
    assert all(set(ids) == {PAD} and set(labels) == {-100} for ids, labels in padding)


def test_images_come_in_the_order_of_their_tokens(scan, transform, dataset):
    data = dataset([Example(scan.samples[n], about_image(answer="cat " * (3 * n % 7))) for n in range(7)])
    batch = ImageTextCollate(DecodedImages(transform), pad_token_id=PAD)([data[n] for n in range(7)])
    by_length = {len(data[n].ids): scan.samples[n] for n in range(7)}
    in_order = [by_length[len(ids)] for ids, _ in documents(batch) if ids[0] != PAD]
    assert torch.equal(batch["pixel_values"], DecodedImages(transform)(in_order)["pixel_values"])
    assert (batch["input_ids"] == IMAGE).sum() == 7


def test_rows_are_as_long_as_the_longest_example_and_well_filled():
    lengths = [3, 10, 4, 6, 7, 2]
    rows = fit_into_rows(lengths)
    assert sorted(item for row in rows for item in row) == list(range(6))
    assert [sum(lengths[item] for item in row) for row in rows] == [10, 10, 10, 2]


def test_cached_features_are_what_the_encoder_makes_of_the_pixels(scan, encoder, transform, tmp_path):
    cached = cache_images([scan], encoder, transform, tmp_path)(scan.samples[:3])["image_features"]
    pixels = DecodedImages(transform)(scan.samples[:3])["pixel_values"]
    # The cache keeps float16.
    torch.testing.assert_close(cached, encoder(pixels), rtol=1e-3, atol=1e-3)


def test_filling_tells_its_progress_and_the_second_time_encodes_nothing(scan, encoder, transform, tmp_path):
    told = []
    cache_images([scan], encoder, transform, tmp_path, on_progress=lambda *counts: told.append(counts))
    assert told[-1] == (len(scan.samples), len(scan.samples))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    cache_images([scan], encoder, transform, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_a_bad_image_is_skipped_and_counted_when_the_cache_is_filled(scan, encoder, transform, tmp_path):
    count, bad = len(scan.samples), spoil(scan, 4)
    images = cache_images([scan], encoder, transform, tmp_path)
    assert len(scan.samples) == count - 1
    assert bad not in scan.samples
    assert scan.skipped.total() == 1
    assert next(iter(scan.skipped)).startswith("image_")
    assert len(images(scan.samples)["image_features"]) == count - 1


def batches_of(scan, dataset, *, max_bad: int, samples_per_batch: int = 4, num_batches: int = 30) -> ResumableLoader:
    source = Source(
        name="captions",
        dataset=dataset(caption_examples(scan.samples)),
        samples_per_batch=samples_per_batch,
        max_bad=max_bad,
    )
    collate = ImageTextCollate(source.dataset.images, pad_token_id=PAD)
    return ResumableLoader([source], collate, seed=0, num_batches=num_batches)


def test_where_none_may_be_bad_a_bad_image_is_an_error_that_names_it(scan, dataset):
    bad = spoil(scan, 2)
    with pytest.raises(DataError, match=rf"{bad.name}: .*limit is 0 \(max_bad_fraction\).*arlow data verify"):
        list(batches_of(scan, dataset, max_bad=0))


@pytest.mark.parametrize("samples_per_batch", [1, 4])
def test_for_a_bad_image_its_neighbour_stands_in_and_it_is_counted_once(scan, dataset, samples_per_batch, caplog):
    bad = [spoil(scan, index) for index in (2, 3)]
    loader = batches_of(
        scan, dataset, max_bad=2, samples_per_batch=samples_per_batch, num_batches=3 * len(scan.samples)
    )
    whole = list(loader)
    assert all(len(batch["keys"]) == len(batch["pixel_values"]) == samples_per_batch for batch in whole)
    used = {key for batch in whole for key in batch["keys"]}
    assert used == {f"captions:{sample.name}" for sample in scan.samples if sample not in bad}
    reader = loader.readers["captions"]
    assert reader.bad.keys() == {sample.name for sample in bad}
    assert reader.summary().startswith("2 samples skipped (")
    assert all(caplog.text.count(sample.name) == 1 for sample in bad)


def test_a_resumed_stream_has_the_same_stand_ins_and_remembers_the_bad_items(scan, dataset):
    for index in (1, 5, 6):
        spoil(scan, index)
    whole = list(batches_of(scan, dataset, max_bad=3))
    for position in (0, 3, 29):
        first, second = (batches_of(scan, dataset, max_bad=3) for _ in range(2))
        stream = iter(first)
        for _ in range(position):
            next(stream)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.readers["captions"].bad == first.readers["captions"].bad
        assert [batch["keys"] for batch in second] == [batch["keys"] for batch in whole[position:]]


def test_one_bad_image_more_than_is_allowed_ends_the_stream(scan, dataset):
    for index in (1, 5, 6):
        spoil(scan, index)
    with pytest.raises(DataError, match="3 samples skipped"):
        list(batches_of(scan, dataset, max_bad=2))


def test_a_stream_of_bad_items_alone_ends(scan, dataset):
    for index in range(len(scan.samples)):
        spoil(scan, index)
    with pytest.raises(DataError, match="no sample can be used"):
        list(batches_of(scan, dataset, max_bad=10**6))


def test_validation_leaves_bad_items_out(scan, dataset):
    bad = [spoil(scan, index) for index in (0, 1, 4)]
    source = Source(name="v", dataset=dataset(caption_examples(scan.samples)), samples_per_batch=2, max_bad=3)
    validation = SequentialLoader([source], ImageTextCollate(source.dataset.images, pad_token_id=PAD))
    for _ in range(2):
        keys = [key for batch in validation for key in batch["keys"]]
        assert keys == [f"v:{sample.name}" for sample in scan.samples if sample not in bad]


def test_questions_that_leave_no_room_for_an_answer_are_told_apart(scan):
    examples = question_examples(scan.samples[:1])
    longest = max(len(encode_prompt(tiny_tokenizer(), example.prompt)) for example in examples)
    assert with_room(examples, tiny_tokenizer(), longest + 1) == examples
    assert 0 < len(with_room(examples, tiny_tokenizer(), longest)) < len(examples)


def test_completions_that_are_cut_are_counted(scan, dataset):
    captions = caption_examples(scan.samples)
    for max_length in (22, 32, 84):
        data = dataset(captions, max_length)
        cut = sum(END not in data[i].labels for i in range(len(data)))
        assert count_cut(captions, tiny_tokenizer(), max_length) == cut
