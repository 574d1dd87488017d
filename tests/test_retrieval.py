"""Captions of similar images beside an image: who is whose neighbour, and what is made of it, at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.prompts import encode_prompt
from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.samples import about_images
from arlow_vl.evaluation.class_means import captions_by_mean
from arlow_vl.models.folders import load_tokenizer
from arlow_vl.training.recipe_parsing import parse_recipe
from experiments.retrieval import derive, encoded, pretrained, run, score
from experiments.retrieval.neighbours import means_for_training, nearest, nearest_of_others, nearest_of_training
from tests.evaluation.made_results import image_bytes
from tests.tiny_runs import SAMPLES, write_image_text_recipe

HERE = Path(derive.__file__).parent


def spread(count: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


def hashes(count: int) -> np.ndarray:
    """Of images that are no near-duplicates of each other: half of 256 bits differ."""
    return np.random.default_rng(1).random((count, 256)) > 0.5


def test_the_nearest_are_those_of_the_highest_cosine_whatever_their_length():
    known = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]], np.float32)
    assert nearest(np.array([[2.0, 0.1], [0.1, 0.2]], np.float32), known, 2) == [[0, 2], [2, 1]]


def test_of_equally_near_images_the_first_comes_first():
    known = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [4.0, 0.0]], np.float32)
    assert nearest(np.array([[1.0, 0.0]], np.float32), known, 3) == [[1, 2, 3]]


def test_more_neighbours_than_there_are_images_are_all_there_are():
    assert sorted(nearest(spread(1), spread(3), 10)[0]) == [0, 1, 2]


@pytest.mark.parametrize("whitened", [False, True])
def test_a_training_image_never_finds_itself(whitened):
    features, captions = spread(23), [str(number % 5) for number in range(23)]
    found = nearest_of_training(features, captions, hashes(23), 30, whitened=whitened)
    assert all(own not in rows and rows for own, rows in enumerate(found))
    if not whitened:
        assert all(len(rows) == 22 for rows in found)


@pytest.mark.parametrize("whitened", [False, True])
def test_a_near_duplicate_is_left_out_like_the_image_itself(whitened):
    features, bits = spread(12), hashes(12)
    features[7], bits[7] = features[2], bits[2]
    bits[7, :12] = ~bits[2, :12]  # as many bits as a near-duplicate may differ in
    captions = [str(number % 3) for number in range(12)]
    found = nearest_of_training(features, captions, bits, 12, whitened=whitened)
    assert 7 not in found[2] and 2 not in found[7]
    bits[7, 12] = ~bits[2, 12]  # one more
    assert nearest_of_training(features, captions, bits, 1, whitened=False)[2] == [7]


def test_whitening_finds_the_thing_where_style_is_louder():
    """Drawings of a thing differ most in directions that say nothing of it, and cosine sees little else."""
    dice = np.random.default_rng(0)
    things = np.tile(np.arange(12), 20)
    names, style = np.eye(12)[things], 3 * dice.normal(size=(len(things), 3))
    features = np.concatenate([names + 0.05 * dice.normal(size=names.shape), style], axis=1)
    captions = [f"thing {thing}" for thing in things]

    def right(whitened: bool) -> tuple[float, float]:
        known, new = slice(12, None), slice(12)
        of_new = nearest_of_others(features[new], features[known], captions[known], 1, whitened=whitened)
        of_training = nearest_of_training(features, captions, hashes(len(things)), 1, whitened=whitened)
        shares = [captions[12:][rows[0]] == own for rows, own in zip(of_new, captions[new], strict=True)]
        return float(np.mean(shares)), float(
            np.mean([captions[rows[0]] == own for rows, own in zip(of_training, captions, strict=True)])
        )

    assert min(right(True)) == 1 and max(right(False)) < 0.5


def test_captions_of_nearest_means_are_told_once_each_and_nearest_first():
    features = np.array([[4.0, 0.1], [4.0, -0.1], [0.1, 4.0], [-0.1, 4.0], [-4.0, 0.1], [-4.0, -0.1]])
    found = captions_by_mean(features, ["east", "east", "north", "north", "west", "west"], np.array([[3.0, 1.0]]), 5)
    assert found == [["east", "north", "west"]]


def test_no_image_of_training_counts_in_a_mean_that_it_is_measured_against():
    """Each image has a caption of its own, so a mean with that caption would be the image."""
    features, bits = spread(20), hashes(20)
    captions = [f"caption {number}" for number in range(20)]
    found = means_for_training(features, captions, bits, 20)
    assert all(own not in given and len(given) == 18 for own, given in zip(captions, found, strict=True))
    features[7], bits[7] = features[2], bits[2]  # of another tenth
    found = means_for_training(features, captions, bits, 20)
    assert captions[7] not in found[2] and captions[2] not in found[7]


def tiny_splits() -> dict[str, derive.Split]:
    def split(name: str, colours: list[str]) -> derive.Split:
        keys = [f"{name}-000000.tar:{name}-{number}" for number in range(len(colours))]
        images = [PlacedImage(image_bytes(number), key) for number, key in enumerate(keys)]
        return derive.Split(keys, colours, images, np.eye(4, dtype=np.float32)[: len(colours)])

    splits = {"train": split("train", ["red", "green", "blue"]), "test-known": split("test-known", ["blue"])}
    splits["train"].__dict__["bits"] = hashes(3)
    splits["test-known"].features[0] = [0, 0.1, 1, 0]
    return splits


def test_derived_shards_ask_with_the_captions_of_other_images_and_answer_with_the_own(tmp_path):
    splits = tiny_splits()
    derive.derive(splits, derive.given_by_images(splits, whitened=False, count=2), tmp_path)
    neighbours = {one["image"]: one["given"] for one in derive.read_neighbours(tmp_path)}
    for name, split in splits.items():
        samples = IndexedSamples(indexes_of(str(tmp_path / f"{name}-*.tar")), ("question",))
        found = [samples.sample(number) for number in range(len(samples))]
        assert {sample.key for sample in found} == set(split.keys)
        for sample in found:
            place = split.keys.index(sample.key)
            (question, answer) = next(text for text in sample.texts if text.task == "question").messages
            asked = question["content"][-1]["text"]
            assert answer["content"] == split.captions[place]
            assert asked == derive.question_of(neighbours[sample.key])
            assert (split.captions[place] in asked) == (name != "train")
            assert PlacedImage(sample.images[0], "").read_image() == split.images[place].read_image()
    assert neighbours["test-known-000000.tar:test-known-0"] == ["blue", "green"]


def test_hits_count_the_first_and_any_and_let_case_and_articles_be():
    neighbours = [{"caption": "A cat.", "given": ["dog", "cat"]}, {"caption": "dog", "given": ["Dog", "cat"]}]
    assert derive.hits(neighbours) == (0.5, 1.0)


def test_a_long_caption_ends_with_a_whole_word():
    assert derive.shortened("A cat.") == "A cat"
    long = derive.shortened("word " * 40)
    assert len(long) <= derive.MOST_CHARACTERS and set(long.split()) == {"word"}
    assert derive.question_of([]) == "Similar images: none."


def test_another_images_captions_are_given_to_every_image_once():
    seen = [(str(number), (f"caption {number}",)) for number in range(6)]
    shown = encoded.controls(seen, [f"caption {number}" for number in range(6)])
    assert [image for image, _ in shown[", another's captions"]] == [image for image, _ in seen]
    assert all(own[1] != other[1] for own, other in zip(seen, shown[", another's captions"], strict=True))
    assert all(own[0] != other[0] for own, other in zip(seen, shown[", another image"], strict=True))
    assert sorted(other[0] for other in shown[", another image"]) == [image for image, _ in seen]


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A tiny model that reads captions beside images, the splits of the samples, and what their images are given."""
    folder = tmp_path_factory.mktemp("retrieval")
    recipe = parse_recipe(["--config", str(write_image_text_recipe(folder)), "--run.max_steps", "3"])
    splits, cached = derive.read_splits(SAMPLES / "captions", recipe)
    derive.derive(splits, derive.given_by_images(splits, whitened=True), folder / "derived")
    given = {one["image"]: one["given"] for one in derive.read_neighbours(folder / "derived")}
    reader = encoded.build_reader(recipe, load_tokenizer(recipe.text_checkpoint), cached)
    return recipe, splits, given, reader


def test_the_samples_images_are_given_captions_of_others(reading):
    _, splits, given, _ = reading
    assert set(given) == {key for split in splits.values() for key in split.keys}
    assert all(set(captions) <= set(splits["train"].captions) for captions in given.values())


def test_captions_stand_behind_the_tokens_of_their_image(reading):
    _, splits, given, reader = reading
    seen = encoded.seen_by(splits["test-known"], given)[:2]
    image = len(reader.states([(seen[0][0], ())])["encoder_hidden_states"])
    states = reader.states([seen[0], (seen[1][0], ("a b", "c"))])
    first, second = states["encoder_lengths"].tolist()
    assert first > image and len(states["encoder_hidden_states"]) == first + second
    tokens = [len(ids) + 1 for ids in reader.tokenizer(["a b", "c"], add_special_tokens=False)["input_ids"]]
    assert second == image + sum(tokens)


def test_training_moves_the_projector_of_captions_and_not_the_decoder(reading):
    recipe, splits, given, reader = reading
    decoder = {name: tensor.clone() for name, tensor in reader.model.text_model().state_dict().items()}
    before = reader.caption_projector.fc.weight.clone()
    seen, captions = encoded.seen_by(splits["train"], given), splits["train"].captions
    losses = encoded.train(reader, recipe, seen, captions)
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert not before.equal(reader.caption_projector.fc.weight)
    assert all(tensor.equal(decoder[name]) for name, tensor in reader.model.text_model().state_dict().items())


def test_a_caption_is_what_the_whole_text_read_at_once_makes_likeliest(reading):
    _, splits, given, reader = reading
    reader.eval()
    seen = encoded.seen_by(splits["test-known"], given)[:3]
    prompt = encode_prompt(reader.tokenizer, about_images(1, answer="")[:1])
    with torch.no_grad():
        for one, text in zip(seen, reader.write(seen), strict=True):
            ids = list(prompt)
            while len(ids) < len(prompt) + encoded.NEW_TOKENS:
                logits = reader.model(input_ids=torch.tensor([ids]), **reader.states([one])).logits
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] in reader.model.generation_config.eos_token_id:
                    break
            words = reader.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
            assert text == " ".join(words.split())


def test_batches_are_whole_and_an_epoch_has_every_image_once():
    batches = encoded.shuffled_batches(5, 2, seed=0)
    drawn = [number for _ in range(5) for number in next(batches)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))


def test_samples_of_the_same_image_keep_their_outputs_apart(tmp_path):
    rows = [{"id": f"a.tar:{key}?0", "image": "a.tar:x", "output": f"an {key}"} for key in ("x", "y?")]
    (tmp_path / "predictions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert score.read_outputs(tmp_path) == {"a.tar:x": "an x", "a.tar:y?": "an y?"}


def test_scores_are_those_of_the_same_images_and_a_system_does_not_differ_from_itself():
    captions = {str(number): text for number, text in enumerate(["a red fox", "two gulls", "a robin on a branch"])}
    systems = {"right": captions, "wrong": dict.fromkeys(captions, "nothing")}
    found = score.scored(systems, captions, [("right", "wrong"), ("right", "right")])
    assert found["systems"]["right"]["exact, %"] == 100 and found["systems"]["wrong"]["CIDEr-D"]["estimate"] == 0
    assert found["differences"]["right - wrong"] == found["systems"]["right"]["CIDEr-D"]
    assert set(found["differences"]["right - right"].values()) == {0}
    assert "| wrong | 0.000 [0.000, 0.000], 0.0% |" in score.format_table({"known": found})


def test_shares_of_what_was_copied_are_by_the_place_of_the_caption_given():
    given = {"a": ["cat", "dog"], "b": ["The dog.", "cat"], "c": ["cat", "dog"], "d": ["cat"]}
    outputs = {"a": "Cat", "b": "a dog", "c": "dog", "d": "emu"}
    assert pretrained.copied(outputs, given) == [50, 25, 0, 0, 0]


@pytest.mark.parametrize(("name", "module"), [("result", run), ("pretrained", pretrained)])
def test_the_result_is_what_its_figures_say(name, module):
    figures = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    assert module.result_text(figures) == (HERE / f"{name}.md").read_text(encoding="utf-8")


def test_the_readme_shows_rows_of_the_results():
    measured = (HERE / "README.md").read_text(encoding="utf-8").partition("## Measured")[2]
    rows = [line for line in measured.splitlines() if line.startswith("| ")]
    told = [(HERE / f"{name}.md").read_text(encoding="utf-8") for name in ("result", "pretrained")]
    assert len(rows) > 20 and set(rows) <= set("\n".join(told).splitlines())
