import numpy as np
import pytest

from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import NEAR_BITS, SourceImage, StoredImage, hash_distances
from arlow_vl.data.fetch.splits import (
    group_by_names,
    has_near_duplicate,
    hash_fraction,
    is_faint,
    plan_splits,
    repeats,
    split_of,
)


def stored(key, caption, names, bits):
    origin = SourceImage(key=key, source="s", license="MIT", style="t", caption=caption, names=names, data=b"")
    return StoredImage(origin=origin, jpeg=key.encode(), bits=bits)


def random_bits(rng):
    return rng.random(256) < 0.5


def flipped(bits, count):
    changed = bits.copy()
    changed[:count] ^= True
    return changed


@pytest.fixture(scope="module")
def planned():
    """400 things with three images each; a twentieth of the images nearly repeats one of another thing."""
    rng = np.random.default_rng(0)
    images = []
    for thing in range(400):
        for style in "abc":
            bits = random_bits(rng)
            if rng.random() < 0.05 and images:
                bits = flipped(images[rng.integers(len(images))].bits, 10)
            name = f"thing {thing}"
            images.append(stored(f"{thing}-{style}", name, (f"emoji:{thing}", caption_name(name)), bits))
    return images, plan_splits(images)


def positions(planned, *splits):
    return [position for position, split in enumerate(planned[1].splits) if split in splits]


def test_names_join_directly_and_through_others():
    names = [("e", "x"), ("b", "y"), ("c", "x", "y"), ("d", "z"), ("a",)]
    assert group_by_names(names) == ["b", "b", "b", "d", "a"]


def test_groups_do_not_depend_on_the_order():
    names = [("e", "x"), ("b", "y"), ("c", "x", "y"), ("d", "z")]
    assert group_by_names(names[::-1]) == group_by_names(names)[::-1]


def test_fractions_are_fixed_for_ever():
    assert hash_fraction("emoji:1f431", "split") == pytest.approx(0.5182951784436729, abs=1e-15)


@pytest.mark.parametrize(
    ("group", "split"), [("emoji:1f431", "train"), ("emoji:1f404", "test-novel"), ("emoji:1f989", "validation")]
)
def test_splits_are_fixed_for_ever(group, split):
    assert split_of(group) == split


def test_shares_of_the_splits():
    splits = [split_of(f"group {n}") for n in range(20_000)]
    assert splits.count("test-novel") / 20_000 == pytest.approx(0.08, abs=0.01)  # five standard deviations
    assert splits.count("validation") / 20_000 == pytest.approx(0.05, abs=0.01)


def test_no_group_of_training_is_in_validation_or_novel(planned):
    groups = planned[1].groups
    train = {groups[p] for p in positions(planned, "train")}
    assert not train & {groups[p] for p in positions(planned, "validation", "test-novel")}


def test_known_images_have_their_caption_in_training(planned):
    images, plan = planned
    train = {(plan.groups[p], images[p].origin.caption) for p in positions(planned, "train")}
    known = [(plan.groups[p], images[p].origin.caption) for p in positions(planned, "test-known")]
    assert len(known) == len(set(known)) > 20  # one image of about a tenth of some 350 groups
    assert set(known) <= train


def test_no_training_image_is_near_a_held_out_one(planned):
    bits = np.stack([image.bits for image in planned[0]])
    train, held_out = positions(planned, "train"), positions(planned, "validation", "test-known", "test-novel")
    assert hash_distances(bits[train], bits[held_out]).min() > NEAR_BITS
    assert planned[1].dropped["near a held-out image"] > 0


def test_dropped_images_are_counted(planned):
    assert len(positions(planned, None)) == planned[1].dropped.total()


def test_the_same_image_with_the_same_caption_is_kept_once():
    rng = np.random.default_rng(0)
    one = stored("k", "a cat", ("one",), random_bits(rng))
    two = StoredImage(origin=one.origin, jpeg=one.jpeg, bits=one.bits)
    assert plan_splits([one, two]).dropped == {"repeated": 1}
    assert repeats(["a", "b", "a", "a"]) == [2, 3]


def test_plain_images_are_no_tests():
    blank = np.zeros(256, dtype=bool)
    group = next(f"g{n}" for n in range(1000) if split_of(f"g{n}") == "test-novel")
    plan = plan_splits([stored("k", "a line", (group,), blank)])
    assert plan.splits == [None]
    assert plan.dropped == {"too plain for a test": 1}


def test_faint_hashes_have_few_or_nearly_all_bits():
    bits = np.zeros((4, 256), dtype=bool)
    bits[1, :23], bits[2, :24], bits[3, :240] = True, True, True
    assert is_faint(bits).tolist() == [True, True, False, True]


def test_near_means_twelve_bits_at_most():
    bits = random_bits(np.random.default_rng(0))
    assert has_near_duplicate(np.stack([flipped(bits, 12), flipped(bits, 13)]), bits[None]).tolist() == [True, False]
    assert has_near_duplicate(bits[None], np.zeros((0, 256), dtype=bool)).tolist() == [False]


@pytest.mark.parametrize(("one", "other"), [("A cat.", "cat"), ("The Sun", "sun"), ("flag: Norway", "Flag, Norway!")])
def test_captions_that_differ_in_form_alone_name_one_thing(one, other):
    assert caption_name(one) == caption_name(other)


def test_other_captions_name_other_things():
    names = {caption_name(caption) for caption in ("A cat.", "Two cats.", "a", "A", "?", "!", "猫")}
    assert len(names) == 6
