"""Samples of real shards and of conversations as token ids, and as the batches that the model takes."""

import copy
import json
import shutil

import pytest
import torch

from arlow_vl.data.bad_items import TextError
from arlow_vl.data.collate import PackedRowsCollate, SampleCollate, fit_into_rows
from arlow_vl.data.images import DecodedImages, cache_sample_images
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import CACHED_TEXT_BYTES, EncodedSample, EncodedText, SampleDataset
from arlow_vl.errors import DataError
from tests.data.conftest import SHARD
from tests.outside_data import tar_of
from tests.tiny_runs import SAMPLES, tiny_tokenizer
from vision.decoding.image import ImageError

PAD, END, IMAGE = 3, 6, 7


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return shutil.copy(SHARD, tmp_path_factory.mktemp("shards"))


@pytest.fixture
def dataset(transform, shard):
    def dataset(*tasks, max_length: int = 64, one_text: bool = True, source=None) -> SampleDataset:
        samples = IndexedSamples(indexes_of(source or shard), tasks)
        images = DecodedImages(transform)
        return SampleDataset(samples, tiny_tokenizer(), images, max_length=max_length, one_text=one_text)

    return dataset


@pytest.fixture
def shard_of(tmp_path):
    """Makes a shard of samples that show a fox, each with these fields in its .json."""

    def shard_of(*fields) -> str:
        fox = (SAMPLES / "fox.jpg").read_bytes()
        members = [
            member
            for n, of in enumerate(fields)
            for member in ((f"{n}.jpg", fox), (f"{n}.json", json.dumps(of).encode()))
        ]
        path = tmp_path / "foxes.tar"
        path.write_bytes(tar_of(*members))
        return str(path)

    return shard_of


@pytest.fixture
def chats(tmp_path):
    """Writes records of messages that show a fox, beside its image."""

    def chats(*conversations: list[dict], images: int = 1) -> str:
        shutil.copy(SAMPLES / "fox.jpg", tmp_path)
        records = [{"messages": turns, "images": ["fox.jpg"] * images} for turns in conversations]
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return chats


def say(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


def test_a_caption_follows_its_image(dataset):
    captions = dataset("caption")
    answer = captions.samples.sample(0).texts[0].messages[-1]["content"]
    assert tiny_tokenizer().decode(captions[0].texts[0].ids) == (
        f"<|startoftext|><|im_start|>user\n<image><|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )


def test_every_question_is_an_item_with_a_key_of_its_own(dataset):
    questions = dataset("question")
    count = sum(len(questions.samples.sample(n).texts) for n in range(len(questions.samples)))
    assert len(questions) == count > len(questions.samples)
    keys = [questions.key(n) for n in range(count)]
    assert len(set(keys)) == count and all("?" in key for key in keys)
    told = [text.messages for n in range(len(questions.samples)) for text in questions.samples.sample(n).texts]
    for n in range(count):
        assert told[n][-1]["content"] in tiny_tokenizer().decode(questions[n].texts[0].ids)


def test_a_whole_sample_is_an_item_where_texts_stay_together(dataset):
    whole = dataset("question", one_text=False)
    assert len(whole) == len(whole.samples)
    lengths, images = whole.length(0)
    assert images == 1 and len(lengths) == len(whole.samples.sample(0).texts) > 1
    assert lengths == tuple(len(text.ids) for text in whole[0].texts)


def test_the_fingerprint_tells_other_texts_lengths_and_ways_to_read(dataset):
    same, shorter = dataset("caption"), dataset("caption", max_length=32)
    questions, whole = dataset("question"), dataset("caption", one_text=False)
    assert dataset("caption").fingerprint == same.fingerprint
    assert len({d.fingerprint for d in (same, shorter, questions, whole)}) == 4


def test_a_chat_of_several_turns_trains_each_answer_and_sees_its_images(dataset, chats, transform):
    turns = say("<image>what?", "a fox", "and <image> here?", "the same fox")
    data = dataset("conversation", source=chats(turns, images=2), max_length=200)
    item = data[0]
    assert len(item.images) == 2 and item.texts[0].ids.count(IMAGE) == 2
    learnt = tiny_tokenizer().decode([label for label in item.texts[0].labels if label != IGNORED])
    assert learnt == "a fox<|im_end|>the same fox<|im_end|>"
    batch = SampleCollate(DecodedImages(transform), pad_token_id=PAD)([item])
    assert len(batch["pixel_values"]) == 2 and "image_index" not in batch


def test_a_document_is_learnt_but_for_its_beginning_and_its_images(dataset, shard_of):
    parts = [{"type": "text", "text": "a fox "}, {"type": "image"}, {"type": "text", "text": "<image> sits"}]
    data = dataset("document", source=shard_of({"document": parts}))
    ids, labels = data[0].texts[0]
    assert tiny_tokenizer().decode(ids) == "<|startoftext|>a fox <image><image> sits<|endoftext|>"
    assert ids.count(IMAGE) == 1  # the other is plain text
    assert labels == [IGNORED if i in (ids[0], IMAGE) else i for i in ids]


def test_encoded_texts_stay_in_memory_up_to_a_size(dataset, monkeypatch):
    questions = dataset("question")
    first = [questions[n].texts[0] for n in range(len(questions))]
    assert len(questions.encoded_texts) == len(questions)
    size = sum(CACHED_TEXT_BYTES + 8 * len(text.ids) for text in first[:3])
    monkeypatch.setattr("arlow_vl.data.sample_dataset.CACHED_BYTES", size)
    few = dataset("question")
    for _ in range(2):
        assert [few[n].texts[0] for n in range(len(few))] == first
    assert [*few.encoded_texts] == [(number, text) for number, text in questions.encoded_texts][:3]


def test_a_text_without_room_is_an_error_of_that_text_alone(dataset, shard_of):
    place = [{"type": "image"}]
    texts = [
        {"messages": [{"role": "user", "content": [*place, {"type": "text", "text": asked}]}, *say("", answer)[1:]]}
        for asked, answer in (("why? " * 30, "so"), ("hm", "yes"))
    ]
    source = shard_of({"texts": texts})
    one_by_one = dataset("conversation", source=source)
    with pytest.raises(TextError, match=r"foxes\.tar:0\?0: the prompt has \d+ tokens and leaves no room"):
        one_by_one[0]
    assert one_by_one[1].texts[0].ids
    together = dataset("conversation", source=source, one_text=False)
    assert [bool(text.ids) for text in together[0].texts] == [False, True]
    assert together.length(0)[0][0] == 0


def test_a_bad_image_is_told_whatever_the_text_is(dataset, tmp_path):
    asked = [{"question": "why? " * 30, "answer": "so"}, {"question": "why?", "answer": "so"}]
    members = [("0.jpg", b"no image"), ("0.json", json.dumps({"questions": asked}).encode())]
    (tmp_path / "bad.tar").write_bytes(tar_of(*members))
    items = dataset("question", source=str(tmp_path / "bad.tar"))
    for index in range(2):
        with pytest.raises(ImageError, match=r"bad\.tar:0: "):
            items[index]
        assert items.sample_of(index) == 0


def test_a_look_tells_what_is_cut_and_what_has_no_room(dataset, chats):
    long, cut, good = say("<image>" + "why? " * 30, "so"), say("<image>eh", "a cat " * 60), say("<image>hm", "yes")
    look = dataset("conversation", source=chats(long, cut, good)).look(seed=0)
    assert look.warnings(64) == [
        "1 of 3 prompts fill max_length 64 and are left out",
        "1 of 3 texts are cut at max_length 64",
    ]
    assert look._replace(is_all=False).warnings(64) == [
        "1 of 3 prompts that were drawn fill max_length 64 and are left out",
        "1 of 3 texts that were drawn are cut at max_length 64",
    ]
    with pytest.raises(DataError, match="no prompt leaves room for a completion; raise max_length"):
        dataset("conversation", source=chats(long)).look(seed=0)


def test_a_text_is_cut_also_where_a_turn_behind_the_cut_could_not_be_learnt(dataset, chats):
    data = dataset("conversation", source=chats(say("<image>eh", "a cat " * 60, "why?", "so")))
    data.tokenizer = copy.deepcopy(data.tokenizer)
    refuses = "{% if add_generation_prompt and messages | length > 1 %}{{ raise_exception('late') }}{% endif %}"
    data.tokenizer.chat_template = refuses + data.tokenizer.chat_template
    assert data.look(seed=0).warnings(64) == ["1 of 1 texts are cut at max_length 64"]


@pytest.fixture
def items(dataset) -> list[EncodedSample]:
    """Captions and questions of different lengths."""
    captions, questions = dataset("caption"), dataset("question")
    return [captions[n] for n in range(4)] + [questions[n] for n in range(7)]


def documents(batch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels between the places where positions start again, row by row."""
    found = []
    for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            found.append((ids[start:end].tolist(), labels[start:end].tolist()))
    return found


def test_every_text_is_a_document_of_a_row(items, transform):
    batch = SampleCollate(DecodedImages(transform), pad_token_id=PAD)(items)
    found = [document for document in documents(batch) if document[0][0] != PAD]
    assert sorted(found) == sorted((text.ids, text.labels) for item in items for text in item.texts)
    assert batch["num_tokens"] == sum(len(text.ids) for item in items for text in item.texts)


def test_padding_is_a_document_that_is_not_learnt(items, transform):
    batch = SampleCollate(DecodedImages(transform), pad_token_id=PAD)(items)
    padding = [(ids, labels) for ids, labels in documents(batch) if ids[0] == PAD]
    assert padding
    assert all(set(ids) == {PAD} and set(labels) == {-100} for ids, labels in padding)


class Numbers:
    """Images that are numbers, so that a batch shows where each went."""

    def prepare(self, sample):
        return sample

    def pack(self, prepared):
        return {"pixel_values": torch.tensor(prepared)}


def text(*ids: int) -> EncodedText:
    return EncodedText(list(ids), [IGNORED, *ids[1:]])


def places(batch) -> list[int]:
    """The image that stands at each `<image>` of the batch, row by row."""
    pixels = batch.get("pixel_values", torch.zeros(0))
    return pixels[batch["image_index"]].tolist() if "image_index" in batch else pixels.tolist()


def test_images_come_in_the_order_of_their_places():
    samples = [EncodedSample([text(20, IMAGE, *range(30, 30 + n))], [n]) for n in (1, 5, 2, 4)]
    batch = SampleCollate(Numbers(), pad_token_id=PAD)(samples)
    by_length = {len(sample.texts[0].ids): sample.images[0] for sample in samples}
    in_order = [by_length[len(ids)] for ids, _ in documents(batch) if ids[0] != PAD]
    assert places(batch) == in_order
    assert batch["num_images"] == 4 and "image_index" not in batch


def test_texts_of_a_sample_share_its_images():
    questions = EncodedSample([text(20, IMAGE, 30), text(21, IMAGE), text(22, IMAGE, IMAGE)][:2], ["A"])
    pair = EncodedSample([text(23, IMAGE, 40, IMAGE), text(24, IMAGE, IMAGE)], [5, 6])
    rows = [[(questions._replace(images=[1]), None), (pair, (1,))], [(pair, (0,))]]
    batch = PackedRowsCollate(Numbers(), pad_token_id=PAD, row_tokens=12)(rows)
    assert batch["input_ids"].shape == (2, 12)
    assert places(batch) == [1, 1, 5, 6, 5, 6]
    assert batch["num_images"] == 5  # the pair is in two rows, as two items of the loader
    assert int((batch["input_ids"] == IMAGE).sum()) == len(places(batch))


def test_a_text_that_cannot_be_used_takes_no_place():
    sample = EncodedSample([EncodedText([], []), text(20, IMAGE)], [3])
    batch = PackedRowsCollate(Numbers(), pad_token_id=PAD, row_tokens=6)([[(sample, None)]])
    assert places(batch) == [3]
    assert [ids for ids, _ in documents(batch)] == [[20, IMAGE], [PAD] * 4]


def test_a_batch_of_text_alone_has_no_images():
    batch = PackedRowsCollate(Numbers(), pad_token_id=PAD, row_tokens=6)([[(EncodedSample([text(20, 30)], []), None)]])
    assert batch["num_images"] == 0 and "pixel_values" not in batch


def test_rows_are_as_long_as_the_longest_text_and_well_filled():
    lengths = [3, 10, 4, 6, 7, 2]
    rows = fit_into_rows(lengths)
    assert sorted(item for row in rows for item in row) == list(range(6))
    assert [sum(lengths[item] for item in row) for row in rows] == [10, 10, 10, 2]


def test_cached_features_are_what_the_encoder_makes_of_the_pixels(dataset, encoder, transform, tmp_path):
    captions = dataset("caption")
    cached = cache_sample_images([captions.samples], encoder, transform, tmp_path)
    with_cache = SampleDataset(captions.samples, tiny_tokenizer(), cached, max_length=64, one_text=True)
    features = cached.pack(with_cache[0].images)["image_features"]
    pixels = captions.images.pack(captions[0].images)["pixel_values"]
    torch.testing.assert_close(features, encoder(pixels), rtol=1e-3, atol=1e-3)  # the cache keeps float16


def test_filling_a_second_time_reads_no_image(dataset, encoder, transform, tmp_path, monkeypatch):
    captions, told = dataset("caption"), []
    count = len(captions.samples)
    cache_sample_images([captions.samples], encoder, transform, tmp_path, on_progress=lambda *n: told.append(n))
    assert told[-1] == (count, count)
    monkeypatch.setattr("arlow_vl.data.sample_dataset.read_image", lambda *_: pytest.fail("it was read again"))
    cached = cache_sample_images([captions.samples], encoder, transform, tmp_path)
    assert not cached.refused
