"""Every door to a run tells what it leaves out and holds the recipe's limit, before anything is trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from arlow_vl.data.images import DecodedImages
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.report import check_left_out
from arlow_vl.data.verify import verify_sources
from arlow_vl.errors import DataError
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.training.datamodules import TextData
from arlow_vl.training.image_text_data import ImageTextData, checked_sources, packing_of
from arlow_vl.training.recipe import to_plain
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.resume import comparable
from arlow_vl.training.settings import PackingConfig, SourceConfig
from tests.outside_data import samples, tar_of
from tests.tiny_runs import sentences, tiny_tokenizer, write_image_text_recipe, write_jsonl, write_text_recipe
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform

CONFIG = ArlowConfig(vocab_size=300)

QUESTIONS = [{"question": "Is it red?", "answer": "yes"}]


@pytest.fixture
def text_recipe(tmp_path):
    return parse_recipe(["--config", str(write_text_recipe(tmp_path))])


@pytest.mark.parametrize("name", ["train_text", "validation_text"])
def test_a_text_run_with_too_many_bad_lines_does_not_start(text_recipe, name, capsys):
    path = Path(getattr(text_recipe, name))
    good = path.read_text()
    path.write_text("broken\n" * (9 * good.count("\n")) + good)
    with pytest.raises(DataError, match=rf"{path.name}: \d+ of \d+ lines are unusable, the limit is 10%: bad_json"):
        TextData(text_recipe, tiny_tokenizer(), CONFIG)
    TextData(replace(text_recipe, max_bad_fraction=0.9), tiny_tokenizer(), CONFIG)
    assert f"{path}: {9 * good.count(chr(10))} of" in capsys.readouterr().err


def test_a_text_run_says_what_its_rows_hold(text_recipe, capsys):
    TextData(text_recipe, tiny_tokenizer(), CONFIG)
    assert "train.jsonl: 50 documents" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_share_is_refused(text_recipe, value):
    with pytest.raises(ValueError, match="max_bad_fraction is a share from 0 to 1"):
        replace(text_recipe, max_bad_fraction=value)


def test_a_run_goes_on_with_a_raised_limit(text_recipe):
    raised = replace(text_recipe, max_bad_fraction=0.5)
    assert comparable(to_plain(raised)) == comparable(to_plain(text_recipe))


@pytest.fixture
def recipe(tmp_path):
    """Makes a recipe one of whose sources is a shard of these members."""

    def recipe_of(where: str, kind: str, members: list[tuple[str, bytes]], **changes):
        recipe = parse_recipe(["--config", str(write_image_text_recipe(tmp_path))])
        (tmp_path / "a.tar").write_bytes(tar_of(*members))
        source = replace(recipe.sources[0], name="outside", kind=kind, data=str(tmp_path / "a.tar"))
        return replace(recipe, **{where: [source]}, **changes)

    return recipe_of


def with_questions(key: str, questions) -> list[tuple[str, bytes]]:
    return [*samples(key), (f"{key}.json", json.dumps({"questions": questions}).encode())]


@pytest.mark.parametrize("where", ["sources", "validation_sources"])
@pytest.mark.parametrize("bad", ["photo.0000", "photo.0001"])
def test_a_source_with_too_many_bad_samples_is_refused_before_an_image_is_read(recipe, where, bad, capsys):
    members = [*samples(*"01234567"), *samples(bad)]
    with pytest.raises(DataError, match=r"source outside: 1 of 9 samples is unusable.*dot_in_key"):
        checked_sources(recipe(where, "captions", members), tiny_tokenizer())
    checked_sources(recipe(where, "captions", members, max_bad_fraction=0.5), tiny_tokenizer())
    assert "source outside: 8 used, 1 skipped (dot_in_key 1)" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["sources", "validation_sources"])
def test_a_source_with_too_many_bad_questions_is_refused(recipe, where):
    members = with_questions("0", [*QUESTIONS, {"question": "?", "answer": 3}])
    with pytest.raises(DataError, match=r"source outside: 1 of 2 questions is unusable.*answer_not_text"):
        checked_sources(recipe(where, "questions", members), tiny_tokenizer())
    checked_sources(recipe(where, "captions", members), tiny_tokenizer())


def test_captions_beside_bad_questions_make_them_no_fewer_wherever_they_are_counted(recipe):
    asked = [with_questions(f"{n}", [{"question": "?", "answer": "yes" if n > 2 else 3}]) for n in range(20)]
    made = recipe("sources", "questions", [member for members in asked for member in members])
    told = "3 of 20 questions are unusable"
    with pytest.raises(DataError, match=told):
        checked_sources(made, tiny_tokenizer())
    data = made.sources[0].data
    with pytest.raises(DataError, match=told):
        verify_sources([data]).check()
    with pytest.raises(DataError, match=told):
        check_left_out(indexes_of(data), where="a")


def test_texts_of_other_kinds_cost_a_source_nothing(recipe):
    talks = [{"messages": [{"role": "user", "content": "?"}]}, {"task": "caption", "messages": 3}]
    members = [*samples("0"), ("0.json", json.dumps({"texts": talks}).encode())]
    with pytest.raises(DataError, match=r"1 of 2 texts is unusable.* messages_not_a_list"):
        checked_sources(recipe("sources", "captions", members), tiny_tokenizer())
    with pytest.raises(DataError, match=r"2 of 3 texts are unusable"):
        checked_sources(recipe("sources", "all", members), tiny_tokenizer())


def test_a_source_of_questions_that_has_none_is_refused(recipe):
    with pytest.raises(DataError, match="source outside: none of its 2 samples has a usable question"):
        checked_sources(recipe("sources", "questions", samples(*"01")), tiny_tokenizer())


def test_samples_without_a_question_are_told(recipe, capsys):
    checked_sources(recipe("sources", "questions", [*with_questions("0", QUESTIONS), *samples("1")]), tiny_tokenizer())
    assert "source outside: 1 of 2 samples have no question and are left out" in capsys.readouterr().err


def data_of(recipe) -> ImageTextData:
    images = DecodedImages(ImageTransform(VisionEncoder("test_vit", image_size=32).data_config))
    sources = checked_sources(recipe, tiny_tokenizer())
    return ImageTextData(recipe, sources, tiny_tokenizer(), images, lambda batch: pytest.fail("a batch is made"))


def test_completions_that_are_cut_are_told(recipe, capsys):
    members = [*samples("0"), ("1.jpg", samples("1")[0][1]), ("1.txt", b"a cat " * 100)]
    data_of(recipe("sources", "captions", members))
    assert "source outside: 1 of 2 texts are cut at max_length 128" in capsys.readouterr().err


def test_prompts_without_room_are_told_and_refused_where_none_is_left(recipe, capsys):
    long = [{"question": "Is it red? " * 100, "answer": "yes"}]
    data_of(recipe("sources", "questions", [*with_questions("0", long), *with_questions("1", QUESTIONS)]))
    assert "source outside: 1 of 2 prompts fill max_length 128 and are left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="source outside: no prompt leaves room for a completion; raise max_length"):
        data_of(recipe("sources", "questions", with_questions("0", long)))


@pytest.mark.parametrize(("fraction", "images", "texts"), [(0.1, 1, 2), (0.5, 5, 14), (0.0, 0, 0)])
def test_bad_images_are_limited_by_samples_and_texts_by_themselves(recipe, fraction, images, texts):
    asked = [with_questions(f"{n}", QUESTIONS * (20 if n == 3 else 1)) for n in range(10)]
    members = [member for some in asked for member in some]
    made = recipe("sources", "questions", members, max_bad_fraction=fraction)
    (source,) = data_of(made).training.sources
    assert (source.max_bad, source.max_bad_texts) == (images, texts)


def test_shards_that_went_away_while_the_run_goes_on_are_named(recipe):
    made = recipe("sources", "captions", samples(*"01"))
    data = data_of(made)
    Path(made.sources[0].data).unlink()
    with pytest.raises(DataError, match=r"a\.tar, sample a\.tar:\d, image at byte \d+: the file cannot be read"):
        next(iter(data.train_dataloader()))


def test_text_weighs_as_many_pieces_as_it_is_drawn_in_and_the_shares_are_told(recipe, tmp_path, capsys):
    made = recipe("sources", "captions", samples(*"01"))
    captions = replace(made.sources[0], samples_per_batch=None)
    document = " ".join(sentences(60))
    text = replace(captions, name="text", kind="text", data=str(write_jsonl(tmp_path / "text.jsonl", [document])))
    packing = PackingConfig(row_tokens=128, row_images=2, rows_per_batch=1)
    loader = data_of(replace(made, packing=packing, sources=[captions, text])).training
    assert loader.packing is not None
    pieces = -(-(len(tiny_tokenizer()(document, add_special_tokens=False)["input_ids"]) + 2) // made.max_length)
    assert loader.packing.mixture.weights == {"outside": 2, "text": pieces}
    shares = ", ".join(f"{name} {100 * n / (2 + pieces):.3g}%" for name, n in (("outside", 2), ("text", pieces)))
    assert f"shares of samples: {shares}\n" in capsys.readouterr().err


def test_a_source_whose_images_no_row_takes_is_refused_when_it_is_indexed(recipe):
    made = recipe("sources", "captions", samples(*"01"))
    packing = PackingConfig(row_tokens=128, row_images=0, rows_per_batch=1)
    made = replace(made, packing=packing, sources=[replace(made.sources[0], samples_per_batch=None)])
    with pytest.raises(DataError, match="source outside: no sample fits into a row, as they have 1 image and more; ra"):
        checked_sources(made, tiny_tokenizer())
    checked_sources(replace(made, packing=replace(packing, row_images=1)), tiny_tokenizer())


def test_a_weight_that_is_left_out_beside_a_given_one_is_the_size_of_the_source():
    sources = [SourceConfig(name="coco", data="x"), SourceConfig(name="chats", data="y", weight=50_000.0)]
    packing = PackingConfig(row_tokens=128, row_images=4, rows_per_batch=2)
    mixture = packing_of(packing, sources, {"coco": 600_000, "chats": 80_000}, 1).mixture
    assert mixture.weights == {"coco": 600_000, "chats": 50_000}
