"""An RGB image becomes encoder input, the same as timm's own transform would make of the padded image."""

import json
import pickle

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from tests.outside_data import colourful
from vision.transform import INTERPOLATIONS, ImageTransform, transform_difference

DATA_CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.2),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}
OPTIONS = {"background": (1, 2, 3), "max_tiles": 4}
OTHERS = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.1, 0.2, 0.2),
    "input_size": (3, 48, 32),
    "interpolation": "bilinear",
    "background": (0, 0, 0),
    "max_tiles": 2,
}


def padded(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", [(90, 90), (97, 41), (41, 97), (20, 9), (33, 1), (1, 33), (700, 1000)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_it_is_bit_for_bit_timms_own_transform_of_the_padded_image(interpolation, size):
    config = {**DATA_CONFIG, "interpolation": interpolation, "crop_pct": 1.0, "crop_mode": "squash"}
    image = colourful(*size)
    assert torch.equal(ImageTransform(config)(image), create_transform(**config)(padded(image)))


def test_the_transform_pads_to_a_square_resizes_and_normalises():
    image = colourful(48, 24)
    square = Image.new("RGB", (48, 48), (255, 255, 255))
    square.paste(image, (0, 12))
    small = torch.tensor(list(square.resize((32, 32), Image.Resampling.BICUBIC).tobytes())).view(32, 32, 3) / 255
    expected = ((small - torch.tensor(DATA_CONFIG["mean"])) / torch.tensor(DATA_CONFIG["std"])).permute(2, 0, 1)
    torch.testing.assert_close(ImageTransform(DATA_CONFIG)(image), expected)


def test_nothing_is_cut_off_a_square_image():
    image = Image.new("RGB", (64, 64))
    image.paste("white", (0, 0, 64, 2))
    assert ImageTransform(DATA_CONFIG)(image)[:, 0].min() > ImageTransform(DATA_CONFIG)(image)[:, 2:].max()


def test_the_padding_has_the_background_colour():
    tensor = ImageTransform(DATA_CONFIG, background=(0, 0, 0))(Image.new("RGB", (64, 16), "white"))
    torch.testing.assert_close(tensor[:, 0, 0], -torch.tensor(DATA_CONFIG["mean"]) / torch.tensor(DATA_CONFIG["std"]))


def test_an_oblong_input_gets_its_own_aspect():
    transform = ImageTransform({**DATA_CONFIG, "input_size": (3, 16, 32)})
    assert transform(Image.new("RGB", (10, 40))).shape == (3, 16, 32)


def test_a_very_long_strip_is_not_padded_to_a_giant_square():
    assert ImageTransform(DATA_CONFIG)(Image.new("RGB", (200_000, 1))).shape == (3, 32, 32)


def test_the_transform_survives_json():
    transform = ImageTransform(DATA_CONFIG, **OPTIONS)
    again = ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.to_dict() == transform.to_dict()
    torch.testing.assert_close(again(colourful()), transform(colourful()), rtol=0, atol=0)


def test_the_transform_can_be_sent_to_another_process():
    transform = ImageTransform(DATA_CONFIG)
    expected = transform(colourful())
    torch.testing.assert_close(pickle.loads(pickle.dumps(transform))(colourful()), expected, rtol=0, atol=0)


def test_unknown_keys_of_a_saved_transform_are_refused():
    with pytest.raises(ValueError, match="crop_pct"):
        ImageTransform.from_dict({**ImageTransform(DATA_CONFIG).to_dict(), "crop_pct": 1.0})


@pytest.mark.parametrize(
    "wrong", [{"interpolation": "random"}, {"input_size": (1, 32, 32)}, {"input_size": (3, 0, 32)}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageTransform({**DATA_CONFIG, **wrong})


def test_a_transform_saved_before_it_had_options_has_their_defaults():
    older = {name: DATA_CONFIG[name] for name in ImageTransform.DATA_CONFIG} | {"background": [255, 255, 255]}
    assert transform_difference(ImageTransform.from_dict(older), ImageTransform(DATA_CONFIG)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"background": (300, 0, 0)},
        {"background": (0, -5, 0)},
        {"max_tiles": 0},
        {"max_tiles": 65},
        {"patch_size": 16},
        {"max_patches": 256},
        {"patch_size": 16, "max_patches": 0},
        {"max_tiles": 4, "patch_size": 16, "max_patches": 256},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageTransform(DATA_CONFIG, **wrong)


def test_equal_transforms_have_no_difference():
    again = ImageTransform.from_dict(json.loads(json.dumps(ImageTransform(DATA_CONFIG, **OPTIONS).to_dict())))
    assert transform_difference(ImageTransform(DATA_CONFIG, **OPTIONS), again) is None


@pytest.mark.parametrize("field", OTHERS)
def test_every_field_that_differs_is_named_with_both_values(field):
    was = ImageTransform(DATA_CONFIG)
    fields = {**was.to_dict(), field: OTHERS[field]}
    difference = transform_difference(was, ImageTransform.from_dict(fields))
    assert difference == f"{field} was {getattr(was, field)} and is {OTHERS[field]}"


def test_the_first_of_several_differences_is_named():
    other = ImageTransform({**DATA_CONFIG, "mean": (0.485, 0.456, 0.406), "std": (1, 1, 1)})
    difference = transform_difference(ImageTransform(DATA_CONFIG), other)
    assert difference == "mean was (0.5, 0.4, 0.3) and is (0.485, 0.456, 0.406)"


def test_a_budget_of_patches_is_a_difference():
    native = ImageTransform(DATA_CONFIG, patch_size=16, max_patches=256)
    assert transform_difference(native, ImageTransform(DATA_CONFIG)) == "patch_size was 16 and is None"
    more = ImageTransform(DATA_CONFIG, patch_size=16, max_patches=512)
    assert transform_difference(native, more) == "max_patches was 256 and is 512"
