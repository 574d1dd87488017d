"""Images of a group have an order: each encoder token carries the number of its image among those seen together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.models.arlow.documents import PADDING
from arlow_vl.models.arlow.image_numbers import AS_THEY_CAME, number_waves
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.segment_building import build_segment_mask, build_segment_table
from tests.conftest import open_gates
from tests.models.arlow.test_segments import laid_out, layouts

IMAGE = 7
BUILDERS = pytest.mark.parametrize("build", [build_segment_table, build_segment_mask])


def literal_numbers(is_image, documents, build):
    """By a loop: a number grows from one image to the next, and starts again behind a word or in another document."""
    numbers = []
    for row, of_row in zip(is_image.tolist(), documents.tolist(), strict=True):
        text = [(image, document) for image, document in zip(row, of_row, strict=True) if document != PADDING]
        last_document, number = PADDING, 0
        for image, document in text:
            if document != last_document or (not image and build is build_segment_table):
                number = 0
            last_document = document
            if image:
                numbers.append(number)
                number += 1
    return numbers


@BUILDERS
@given(layouts(), st.data())
def test_every_encoder_token_carries_the_number_of_its_image(build, layout, data):
    is_image, documents, lengths = laid_out(layout)
    numbers = literal_numbers(is_image, documents, build)
    count = len(numbers)
    states = torch.randn(int(lengths.sum()), 6, dtype=torch.float64)
    waves = number_waves(torch.tensor([0, *numbers]), 6)[1:].double()
    expected = [image + waves[i] for i, image in enumerate(states.split(lengths.tolist()))]
    entries = build(is_image, documents, lengths).entries
    torch.testing.assert_close(entries.numbered(states), torch.cat([states[:0], *expected]), rtol=0, atol=0)
    assert (entries is AS_THEY_CAME) == (not any(numbers))

    # The same, of images that are shared: numbered once for each number, and put where they are seen.
    index = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    names = sorted(set(index))
    image_index = torch.tensor([names.index(i) for i in index], dtype=torch.long)
    shared = torch.arange(1, len(names) + 1)
    states = torch.randn(int(shared.sum()), 6, dtype=torch.float64)
    images = states.split(shared.tolist())
    entries = build(is_image, documents, shared, image_index).entries
    pool = entries.numbered(states)
    assert len(pool) == sum(int(shared[i]) for i, _ in {*zip(image_index.tolist(), numbers, strict=True)})
    pool = pool if entries.places is None else pool[entries.places]
    expected = [images[i] + waves[n] for n, i in enumerate(image_index.tolist())]
    torch.testing.assert_close(pool, torch.cat([states[:0], *expected]), rtol=0, atol=0)


def test_numbers_are_told_apart_and_the_first_has_none():
    waves = number_waves(torch.arange(60), 64)
    assert not waves[0].any()
    apart = torch.cdist(waves, waves) + 10 * torch.eye(60)
    assert apart.min() > 0.25 * waves[1].norm()


def test_waves_are_float32_where_training_creates_bfloat16(bfloat16_by_default):
    assert number_waves(torch.arange(60), 64).dtype == torch.float32


@pytest.mark.parametrize("rule", ["last_group", "all_previous"])
def test_images_that_change_places_are_read_otherwise(small_config, rule):
    small_config.cross_attention_sees = rule
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    ids, images = torch.tensor([[3, IMAGE, IMAGE, 30, 31]]), torch.randn(2, 5, 64)
    there, back = (model(ids, encoder_hidden_states=x).logits for x in (images, images.flip(0)))
    assert (there - back)[:, 3:].abs().max() > 1e-4
    # Keys alone have no order: of one image made of both sets of tokens it does not matter which come first.
    ids = torch.tensor([[3, IMAGE, 30, 31]])
    there, back = (model(ids, encoder_hidden_states=x.reshape(1, 10, 64)).logits for x in (images, images.flip(0)))
    torch.testing.assert_close(there, back)


def test_numbers_begin_again_where_all_images_are_taken_back(small_config):
    small_config.cross_attention_sees = "all_previous"
    model = ArlowForCausalLM(small_config).eval()
    open_gates(model)
    ids, images = torch.tensor([[3, IMAGE, IMAGE, 30, 31, 32]]), torch.randn(2, 5, 64)
    cache = model(ids, encoder_hidden_states=images, use_cache=True).cache
    cache.crop(-5)
    again = model(ids[:, 1:], encoder_hidden_states=images, cache=cache).logits
    torch.testing.assert_close(again, model(ids, encoder_hidden_states=images).logits[:, 1:])
