"""Texts that share an image read it as if each had brought its own, and its keys are projected once."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.conftest import open_gates

IMAGE = 7


@st.composite
def texts_and_images(draw):
    """(rows, T) ids, positions of packed documents, and the image of each `<image>`; each image has a place."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(4, 12))
    kinds = st.lists(st.sampled_from("wwi"), min_size=width, max_size=width)
    body = [draw(kinds) for _ in range(rows)]
    ids = torch.tensor([[IMAGE if kind == "i" else 20 + i % 50 for i, kind in enumerate(row)] for row in body])
    starts = [draw(st.integers(1, width)) for _ in range(rows)]  # where the row's second document begins
    positions = torch.tensor([[i if i < start else i - start for i in range(width)] for start in starts])
    count = int((ids == IMAGE).sum())
    index = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    numbers = sorted(set(index))
    return ids, positions, torch.tensor([numbers.index(number) for number in index], dtype=torch.long)


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    encoder = inputs["encoder_hidden_states"].requires_grad_()
    output = model(**inputs, labels=inputs["input_ids"])
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.logits, gradients | {"encoder": encoder.grad}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@pytest.mark.parametrize("sees", ["last_group", "all_previous"])
@given(case=texts_and_images(), lengths=st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_logits_and_gradients_are_those_of_images_that_came_for_each_text(small_config, sees, case, lengths):
    ids, positions, index = case
    if not len(index):
        return
    config = type(small_config).from_dict(small_config.to_dict() | {"cross_attention_sees": sees})
    model = ArlowForCausalLM(config).double()
    open_gates(model)
    of_image = [torch.randn(length, config.hidden_size).double() for length in lengths[: int(index.max()) + 1]]
    shared = torch.cat(of_image), torch.tensor([len(x) for x in of_image])
    apart = torch.cat([of_image[i] for i in index]), torch.tensor([len(of_image[i]) for i in index])
    text = {"input_ids": ids, "position_ids": positions}
    logits, gradients = loss_and_gradients(
        model, **text, encoder_hidden_states=shared[0], encoder_lengths=shared[1], image_index=index
    )
    expected, their_gradients = loss_and_gradients(
        model, **text, encoder_hidden_states=apart[0], encoder_lengths=apart[1]
    )
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    summed = torch.zeros_like(gradients["encoder"])
    places = [torch.arange(len(shared[0])).split(shared[1].tolist())[i] for i in index]
    their_gradients["encoder"] = summed.index_add(0, torch.cat(places), their_gradients["encoder"])
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.fixture
def reader(small_config):
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision)).eval()
    open_gates(model.model.language_model)
    return model


TEXTS = torch.tensor([[IMAGE, 21, 22, 23], [30, IMAGE, 31, 32], [IMAGE, 40, 41, 42]])
INDEX = torch.tensor([0, 1, 0])


def test_a_shared_image_is_encoded_and_its_keys_are_projected_once(reader):
    pixels = torch.randn(2, 3, 160, 160)
    rows = []
    block = next(layer.cross_block for layer in reader.model.language_model.layers if layer.cross_block is not None)
    block.attn.k_proj.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    shared = reader(input_ids=TEXTS, pixel_values=pixels, image_index=INDEX)
    apart = reader(input_ids=TEXTS, pixel_values=pixels[INDEX])
    assert rows[0] * 3 == rows[1] * 2
    torch.testing.assert_close(shared.logits, apart.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_reads_shared_images(reader, search):
    pixels = torch.randn(2, 3, 160, 160)
    options = search | {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    mask = torch.ones_like(TEXTS)
    shared = reader.generate(input_ids=TEXTS, attention_mask=mask, pixel_values=pixels, image_index=INDEX, **options)
    apart = reader.generate(input_ids=TEXTS, attention_mask=mask, pixel_values=pixels[INDEX], **options)
    assert torch.equal(shared, apart)


def test_a_conversation_goes_on_over_a_cache_with_all_its_images(reader):
    pixels = torch.randn(1, 3, 160, 160)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    first = torch.tensor([[IMAGE, 21, 22]])
    turn = reader.generate(input_ids=first, attention_mask=torch.ones_like(first), pixel_values=pixels, **options)
    more = torch.cat([turn.sequences, torch.tensor([[30, IMAGE, 31]])], dim=1)
    mask, index = torch.ones_like(more), torch.tensor([0, 0])
    cache = getattr(turn, "cache", None) or turn.past_key_values
    over_cache = reader.generate(
        input_ids=more, attention_mask=mask, pixel_values=pixels, image_index=index, cache=cache, **options
    )
    anew = reader.generate(input_ids=more, attention_mask=mask, pixel_values=pixels[index], **options)
    assert torch.equal(over_cache.sequences, anew.sequences)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (torch.tensor([0, 2, 0]), "must name each of the 2 images at least once"),
        (torch.tensor([0, 0, 0]), "must name each of the 2 images at least once"),
        (torch.tensor([0, -1, 1]), "must name each of the 2 images at least once"),
        (torch.tensor([0, 1]), "got 2 images for 3 <image> tokens"),
        (torch.tensor([[0, 1, 0]]), "with an entry for each <image>"),
        (torch.tensor([0.0, 1.0, 0.0]), "with an entry for each <image>"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(reader, index, sentence):
    with pytest.raises(ValueError, match=sentence):
        reader(input_ids=TEXTS, pixel_values=torch.randn(2, 3, 160, 160), image_index=index)


def test_an_index_without_images_is_refused(reader):
    with pytest.raises(ValueError, match="image_index came without"):
        reader.model.language_model(input_ids=torch.tensor([[20, 21]]), image_index=torch.tensor([0]))
