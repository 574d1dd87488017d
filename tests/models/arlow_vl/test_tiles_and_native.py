"""Tiles and native resolution through the whole model: as if each image were alone, and never padded."""

import numpy as np
import pytest
import torch
from PIL import Image

from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from tests.conftest import open_gates

TRANSFORMS = {"one size": {}, "tiles": {"max_tiles": 6}, "native": {"max_patches": 16}}
PROJECTORS = ("linear", "mlp", "perceiver")
SIZES = ((64, 64), (150, 70), (40, 200), (32, 32))


@pytest.fixture
def text_checkpoint(small_config, tmp_path):
    ArlowForCausalLM(small_config).save_pretrained(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def build(text_checkpoint):
    def build(transform: str = "tiles", timm_name: str = "test_vit", patch_size: int | None = None, **settings):
        transform = TRANSFORMS[transform] | ({"patch_size": patch_size} if patch_size else {})
        vision_config = ArlowVisionConfig(timm_name=timm_name, image_size=32, transform=transform)
        model = ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config, **settings).eval()
        open_gates(model)
        if model.model.projector.tile_embedding is not None:
            torch.nn.init.normal_(model.model.projector.tile_embedding.weight)
        return model, ArlowProcessor(ArlowImageProcessor.of_model(model.config), ArlowTokenizerFast())

    return build


@pytest.fixture
def images():
    dice = np.random.default_rng(0)
    return [Image.fromarray(dice.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


TEXT = ["<image>a<image>b", "no image", "<image> c", "d <image>"]


def batch_of(processor, images, text=TEXT):
    rows, left = [], list(images)
    for row in text:
        rows.append([left.pop(0) for _ in range(row.count("<image>"))])
    return processor(text=text, images=rows, padding=True, padding_side="left", return_tensors="pt")


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_batch_of_images_of_all_sizes_is_as_each_row_alone(build, images, transform, projector):
    model, processor = build(transform, projector=projector, projector_latents=3)
    batch = batch_of(processor, images)
    logits = model(**batch).logits
    per_row = [row.count("<image>") for row in TEXT]
    for number, row in enumerate(TEXT):
        own = images[sum(per_row[:number]) : sum(per_row[: number + 1])]
        alone = processor(text=[row], images=[own] if own else None, return_tensors="pt")
        width = alone.input_ids.shape[1]
        # other shapes of products round differently
        torch.testing.assert_close(logits[number, -width:], model(**alone).logits[0], atol=2e-5, rtol=1e-4)


def test_the_decoder_reads_as_many_tokens_as_an_image_has(build, images):
    for transform, lengths in (("tiles", [4 * 5, 4 * 7, 4 * 6, 4]), ("native", [16, 15, 16, 4])):
        model, processor = build(transform)
        inputs = processor.image_processor(images, return_tensors="pt")
        encoded = model.model.encode_images(**inputs)
        assert encoded.lengths.tolist() == lengths
        assert len(encoded.states) == sum(lengths)


def test_the_output_has_what_was_read_of_each_image(build, images):
    model, processor = build("native")
    seen = model(**batch_of(processor, images)).image_outputs
    assert [len(states) for states in seen.pooler_output] == [16, 15, 16, 4]


def test_a_perceiver_makes_the_same_number_of_tokens_of_any_image(build, images):
    model, processor = build("tiles", projector="perceiver", projector_latents=3)
    inputs = processor.image_processor(images, return_tensors="pt")
    assert model.model.encode_images(**inputs).states.shape == (4, 3, 64)


def test_a_thumbnail_alone_is_what_it_is_without_tiles(build):
    model, processor = build("tiles")
    torch.nn.init.zeros_(model.model.projector.tile_embedding.weight)
    plain, plain_processor = build("one size")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "tile_embedding" not in k})
    image = Image.new("RGB", (30, 20), "red")
    inputs = processor(text="<image>a", images=image, return_tensors="pt")
    expected = plain(**plain_processor(text="<image>a", images=image, return_tensors="pt")).logits
    assert inputs["tile_ids"].tolist() == [0]
    assert torch.equal(model(**inputs).logits, expected)


def test_a_new_models_places_change_nothing_yet(text_checkpoint):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=32, transform={"max_tiles": 6})
    model = ArlowVLForConditionalGeneration.from_text_checkpoint(text_checkpoint, vision_config)
    assert not model.model.projector.tile_embedding.weight.any()


def test_where_a_tile_lies_counts(build, images):
    model, processor = build("tiles")
    inputs = processor(text="<image>a", images=images[1], return_tensors="pt")
    elsewhere = dict(inputs) | {"tile_ids": inputs["tile_ids"].flip(0)}
    assert not torch.allclose(model(**inputs).logits, model(**elsewhere).logits)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_with_and_without_cache_is_the_same_and_encodes_once(build, images, transform, settings):
    model, processor = build(transform)
    batch, calls = batch_of(processor, images), []
    model.model.projector.register_forward_hook(lambda *_: calls.append(1))
    settings = settings | {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, **settings)
    assert len(calls) == 1
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gives_all", [True, False])
def test_two_turns_over_one_cache_are_one_conversation(build, images, transform, gives_all):
    """The second turn brings an image; its caller may give every image of the conversation, or the new one."""
    model, processor = build(transform)
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    first = model.generate(**processor(text="<image>what?", images=images[0], return_tensors="pt"), **settings)
    more = processor(text="and<image>here?", images=images[1], return_tensors="pt")
    ids = torch.cat([first.sequences, more.input_ids[:, 1:]], dim=1)
    whole, new, other = (processor.image_processor(p) for p in (images[:2], images[1], images[1:3]))
    second = model.generate(ids, cache=first.cache, **(whole if gives_all else new), **settings)
    expected, wrong = (model.generate(ids, **inputs, **settings) for inputs in (whole, other))
    # over a cache the products have other shapes, and round differently
    torch.testing.assert_close(second.logits[0], expected.logits[0], atol=2e-5, rtol=1e-4)
    assert torch.equal(second.sequences, expected.sequences)
    assert not torch.allclose(second.logits[0], wrong.logits[0], atol=1e-3)


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_one_folder_holds_the_whole(build, images, transform, projector, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = build(transform, projector=projector)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    again = AutoProcessor.from_pretrained(tmp_path / "whole")
    again.check_fits(loaded.config)
    batch, expected = batch_of(again, images), batch_of(processor, images)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[key], expected[key]) for key in expected)
    assert torch.equal(loaded(**batch).logits, model(**expected).logits)
    assert type(loaded) is ArlowVLForConditionalGeneration and type(again) is ArlowProcessor


@pytest.mark.parametrize("transform", ["tiles", "native"])
def test_gradients_reach_all_but_a_frozen_encoder(build, images, transform):
    model, processor = build(transform, projector="perceiver")
    model.model.vision.requires_grad_(False)
    batch = batch_of(processor, images)
    model(**batch, labels=batch.input_ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.projector.parameters())
    assert all(parameter.grad is None for parameter in model.model.vision.parameters())


def test_features_of_tiles_stand_in_for_their_pixels(build, images):
    model, processor = build("tiles")
    batch = dict(batch_of(processor, images))
    expected = model(**batch).logits
    features = model.model.vision(batch.pop("pixel_values"))
    assert torch.equal(model(**batch, image_features=features).logits, expected)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_features_of_native_resolution_stand_in_for_their_pixels(build, images, projector):
    model, processor = build("native", projector=projector)
    batch = dict(batch_of(processor, images))
    expected = model(**batch).logits
    features, lengths = model.model.vision.forward_native(batch.pop("pixel_values"), batch["image_grids"])
    features = {"image_features": features, "encoder_lengths": lengths}
    assert torch.equal(model(**batch, **features).logits, expected)
    settings = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2, "eos_token_id": None}
    from_pixels = model.generate(**batch_of(processor, images), **settings)
    assert torch.equal(model.generate(**batch, **features, **settings), from_pixels)


@pytest.mark.parametrize(
    ("name", "patch_size"), [("test_efficientnet", 16), ("test_efficientnet", 64), ("test_vit", 32)]
)
def test_a_net_without_a_token_a_patch_has_features_that_stand_in_for_pixels(build, images, name, patch_size):
    model, processor = build("native", name, patch_size)
    batch = dict(batch_of(processor, images))
    expected = model(**batch).logits
    features, lengths = model.model.vision.forward_native(batch.pop("pixel_values"), batch["image_grids"])
    assert lengths.tolist() != batch["image_grids"].prod(1).tolist()
    assert torch.equal(model(**batch, image_features=features, encoder_lengths=lengths).logits, expected)
    batch["image_grids"] = batch["image_grids"][1:]
    with pytest.raises(ValueError, match="need the image_grids that pixel_values had"):
        model(**batch, image_features=features, encoder_lengths=lengths)


@pytest.mark.parametrize(
    ("transform", "change", "message"),
    [
        ("tiles", lambda batch: batch["tiles_per_image"].add_(1), "tiles_per_image .* must be positive and add up to"),
        ("one size", lambda batch: batch.update(tile_ids=torch.zeros(4, dtype=torch.long)), "no places for tiles"),
        ("one size", lambda batch: batch.update(image_grids=torch.ones(4, 2).long()), "image_grids goes with"),
        ("native", lambda batch: batch.pop("image_grids"), "image_grids goes with"),
        ("native", lambda batch: batch["image_grids"].add_(1), "image_grids .* must be positive and add up to"),
        (
            "one size",
            lambda batch: batch.update(pixel_values=batch["pixel_values"][None]),
            r"pixel_values must be \(images, 3, height, width\), .* got \(1, 4, 3, 32, 32\)",
        ),
        (
            "one size",
            lambda batch: batch.update(pixel_values=batch["pixel_values"].transpose(1, 3)),
            r"3 channels on the second axis, got \(4, 32, 32, 3\)",
        ),
        (
            "tiles",
            lambda batch: batch.update(image_features=torch.zeros(4, 4, 63), pixel_values=None),
            "image_features must be 64 wide, .* got 63",
        ),
        (
            "native",
            lambda batch: batch.update(image_features=torch.zeros(9, 64), pixel_values=None, image_grids=None),
            "encoder_lengths goes with image_features of two axes",
        ),
        (
            "native",
            lambda batch: batch.update(
                image_features=torch.zeros(9, 64),
                pixel_values=None,
                image_grids=None,
                encoder_lengths=torch.tensor([2, 2, 2, 2]),
            ),
            r"encoder_lengths \[2, 2, 2, 2\] must be positive and add up to the 9 tokens",
        ),
        (
            "native",
            lambda batch: batch.update(
                image_features=torch.zeros(8, 64),
                pixel_values=None,
                image_grids=None,
                encoder_lengths=torch.tensor([2, 2, 2, 2]),
            ),
            r"need the image_grids that pixel_values had, .* encoder_lengths \[2, 2, 2, 2\], got None",
        ),
    ],
)
def test_image_inputs_that_do_not_go_together_are_refused(build, images, transform, change, message):
    model, processor = build(transform)
    batch = dict(batch_of(processor, images))
    change(batch)
    with pytest.raises(ValueError, match=message):
        model(**batch)
