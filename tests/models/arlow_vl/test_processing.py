"""Images in every form, text with `<image>`, and both together; one folder with the model."""

import io
import pickle
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

import arlow_vl.models.auto  # noqa: F401
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from vision.decoding.image import ImageError
from vision.transform import ImageTransform

DATA_CONFIG = {
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
    "input_size": (3, 28, 28),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
BACKGROUND = (10, 20, 30)


@pytest.fixture(scope="module")
def image_processor() -> ArlowImageProcessor:
    return ArlowImageProcessor(DATA_CONFIG, background=BACKGROUND)


@pytest.fixture(scope="module")
def processor(image_processor) -> ArlowProcessor:
    return ArlowProcessor(image_processor, ArlowTokenizerFast())


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def image(pixels) -> Image.Image:
    return Image.fromarray(pixels)


def file_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


FORMS = {
    "PIL image": lambda pixels: Image.fromarray(pixels),
    "bytes": lambda pixels: file_bytes(Image.fromarray(pixels)),
    "array": lambda pixels: pixels,
    "data: URL": lambda pixels: f"data:image/png;base64,{b64encode(file_bytes(Image.fromarray(pixels))).decode()}",
    "base64": lambda pixels: b64encode(file_bytes(Image.fromarray(pixels))).decode(),
    "float array": lambda pixels: pixels.astype(np.float64) / 255,
    "array, channels first": lambda pixels: np.moveaxis(pixels, -1, 0),
    "tensor": lambda pixels: torch.tensor(pixels).permute(2, 0, 1),
    "float tensor": lambda pixels: torch.tensor(pixels).permute(2, 0, 1) / 255,
    "tensor, channels last": lambda pixels: torch.tensor(pixels),
    "list": lambda pixels: [Image.fromarray(pixels)],
    "array of four axes": lambda pixels: pixels[None],
    "opaque RGBA": lambda pixels: Image.fromarray(pixels).convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_what_vision_makes_of_it(image_processor, pixels, image, form):
    expected = ImageTransform(DATA_CONFIG, background=BACKGROUND)(image)
    pixel_values = image_processor(FORMS[form](pixels), return_tensors="pt").pixel_values
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values, expected[None])


@pytest.mark.parametrize("as_path", [str, Path])
def test_an_image_may_be_a_path(image_processor, image, tmp_path, as_path):
    (tmp_path / "a.png").write_bytes(file_bytes(image))
    expected = image_processor(image).pixel_values
    assert torch.equal(image_processor(as_path(tmp_path / "a.png")).pixel_values, expected)


@pytest.mark.parametrize("grey", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.float32), torch.zeros(1, 4, 4)])
def test_a_grey_grid_is_an_image(image_processor, grey):
    black = image_processor(Image.new("RGB", (4, 4))).pixel_values
    assert torch.equal(image_processor(grey).pixel_values, black)


def test_deep_and_clear_pixels_follow_the_rules_of_vision(image_processor):
    half = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    assert torch.equal(
        image_processor(half).pixel_values, image_processor(Image.new("RGB", (4, 4), "#808080")).pixel_values
    )
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.equal(
        image_processor(clear).pixel_values, image_processor(Image.new("RGB", (4, 4), "white")).pixel_values
    )


def test_an_image_that_says_it_lies_on_its_side_is_turned(image_processor, pixels):
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6
    upright = Image.fromarray(np.rot90(pixels, -1).copy())
    assert torch.equal(image_processor(turned).pixel_values, image_processor(upright).pixel_values)


def test_images_come_out_in_the_order_of_nested_lists(image_processor, image):
    dark = Image.new("RGB", (4, 4))
    nested = image_processor([[dark], [image, dark]]).pixel_values
    assert torch.equal(nested, torch.cat([image_processor(one).pixel_values for one in (dark, image, dark)]))


def test_numpy_comes_where_numpy_is_asked_for(image_processor, image):
    assert isinstance(image_processor(image, return_tensors="np").pixel_values, np.ndarray)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"junk", "image 1: "),
        (7, "image 1: expected a path.*got int"),
        (None, "image 1: .*got NoneType"),
        (np.zeros((5, 5, 2), np.uint8), r"image 1: .*got uint8 of shape \(5, 5, 2\)"),
        (np.full((4, 4), 2.0), "image 1: .*floats within 0 to 1.*got float64"),
        (np.zeros((4, 4), np.int64), "image 1: .*got int64"),
        ("https://example.org/a.png", "https://example.org/a.png: nothing is fetched from a network"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(image_processor, image, wrong, message):
    with pytest.raises(ImageError, match=message):
        image_processor([image, wrong])


def test_no_image_at_all_is_refused(image_processor):
    with pytest.raises(ValueError, match="no image in images"):
        image_processor([])


def test_a_misspelt_option_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"the image processor has no 'max_tile'; did you mean max_tiles\?"):
        ArlowImageProcessor(DATA_CONFIG, max_tile=3)


def test_keys_that_transformers_and_older_folders_write_are_none_of_its_options(image_processor):
    older = image_processor.to_dict() | {"processor_class": "ArlowProcessor", "scaled_decoding": False, "_hash": "1"}
    assert ArlowImageProcessor.from_dict(older).to_dict() == image_processor.to_dict()


@pytest.mark.parametrize("option", [{"do_resize": False}, {"size": 12}])
def test_an_option_at_the_call_is_refused_in_a_sentence(image_processor, image, option):
    with pytest.raises(ValueError, match=f"takes images and return_tensors, not {next(iter(option))}; how images are"):
        image_processor(image, **option)


def test_the_image_processor_is_saved_as_its_own_file(image_processor, tmp_path):
    image_processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    assert ArlowImageProcessor.from_pretrained(tmp_path).to_dict() == image_processor.to_dict()


@pytest.mark.parametrize("loader", [ArlowImageProcessor, AutoImageProcessor, ArlowProcessor, AutoProcessor])
def test_an_option_beside_the_folder_goes_before_the_folders(processor, loader, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, max_tiles=3, background=[1, 2, 3])
    images = getattr(loaded, "image_processor", loaded)
    assert (images.transform.max_tiles, images.transform.background) == (3, (1, 2, 3))
    loaded.save_pretrained(tmp_path / "again")
    again = loader.from_pretrained(tmp_path / "again", padding_side="left", trust_remote_code=False)
    assert getattr(again, "image_processor", again).to_dict() == images.to_dict()


@pytest.mark.parametrize("option", [{"max_tile": 3}, {"do_resize": False}, {"size": 12}])
def test_an_option_beside_the_folder_that_there_is_not_is_refused(processor, tmp_path, option):
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"the image processor has no '{next(iter(option))}'; "):
        AutoProcessor.from_pretrained(tmp_path, **option)


def test_text_and_image_become_model_inputs(processor, image):
    batch = processor(text="<image>a cat", images=image, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch.input_ids.tolist() == [processor.tokenizer("<image>a cat").input_ids]
    assert batch.input_ids[0, :2].tolist() == [1, processor.image_token_id]
    assert batch.pixel_values.shape == (1, 3, 28, 28)


def test_lists_for_each_row_and_one_list_for_all_are_the_same(processor, image):
    dark = Image.new("RGB", (4, 4))
    text = ["<image>a", "plain", "<image> and <image>"]
    options = {"padding": True, "return_tensors": "pt"}
    flat = processor(text=text, images=[image, dark, image], **options)
    nested = processor(text=text, images=[[image], [], [dark, image]], **options)
    assert all(torch.equal(flat[key], nested[key]) for key in ("input_ids", "attention_mask", "pixel_values"))
    assert flat.attention_mask[1, 0] == 0 and flat.input_ids[1, 0] == 3


def test_text_alone_has_no_pixel_values(processor):
    assert set(processor(text="just text", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(text=["a", "b"], images=[[], []])) == {"input_ids", "attention_mask"}


def test_images_alone_are_prompted_by_their_tokens(processor, image):
    assert processor(images=image).input_ids == [[1, 7]]
    assert processor(images=[image, image]).input_ids == [[1, 7], [1, 7]]
    assert processor(images=[[image, image], [image]]).input_ids == [[1, 7, 7], [1, 7]]


@pytest.mark.parametrize(
    ("text", "counts", "message"),
    [
        ("<image>", [2], "row 0 holds 1 <image> and 2 images came"),
        ("<image>", None, "row 0 holds 1 <image> and 0 images came"),
        (["<image>", "a"], [[1], [1]], "row 1 holds 0 <image> and 1 image came"),
        (["a", "<image>"], [[1]], "2 rows but images has lists for 1"),
        (["<image>", "<image>"], [3], "rows 0 to 1 together hold 2 <image> and 3 images came"),
    ],
)
def test_counts_that_differ_are_told_with_the_row(processor, image, text, counts, message):
    images = counts and ([[image] * row[0] for row in counts] if isinstance(counts[0], list) else [image] * counts[0])
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=images)


def test_truncation_never_drops_an_image_token_unseen(processor, image):
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(text="a long text <image>", images=image, truncation=True, max_length=4)


@pytest.mark.parametrize("wrong", [{}, {"text": [1]}, {"text": "a", "videos": ["v.mp4"]}])
def test_other_inputs_are_refused(processor, wrong):
    with pytest.raises(ValueError, match="text"):
        processor(**wrong)


def test_a_tokenizer_without_the_image_token_is_refused(image_processor):
    tokenizer = ArlowTokenizerFast(byte_vocab_without_image(), image_token=None)
    with pytest.raises(ValueError, match="tokenizer has no <image>"):
        ArlowProcessor(image_processor, tokenizer)


def byte_vocab_without_image() -> dict[str, int]:
    from arlow_vl.models.arlow.vocabulary_arlow import byte_vocab

    return {token: index for index, token in enumerate(token for token in byte_vocab() if token != "<image>")}


def test_decoding_is_the_tokenizers(processor):
    ids = processor.tokenizer("a cat").input_ids
    assert processor.decode(ids, skip_special_tokens=True) == "a cat"
    assert processor.batch_decode([ids], skip_special_tokens=True) == ["a cat"]


def test_the_chat_template_takes_images(processor, image):
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": parts}]
    batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert processor.decode(batch.input_ids[0]) == "<|startoftext|><|im_start|>user\n<image>What is it?<|im_end|>\n"
    assert batch.pixel_values.shape == (1, 3, 28, 28)


def test_a_chat_template_that_tells_the_day_tells_always_the_same(image_processor):
    chat, template = [{"role": "user", "content": "a"}], "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    processor = ArlowProcessor(image_processor, ArlowTokenizerFast(), chat_template=template)
    assert processor.apply_chat_template(chat) == "26 Jul 2024: a"
    processor.chat_template = {"default": template, "other": template + "!"}
    assert [processor.apply_chat_template(chat, name) for name in (None, "other", "b")] == [
        "26 Jul 2024: a",
        "26 Jul 2024: a!",
        "b",
    ]


@pytest.mark.parametrize("loader", [ArlowProcessor, AutoProcessor])
@pytest.mark.parametrize("kind", [ArlowTokenizer, ArlowTokenizerFast])
def test_a_folder_with_the_model_gives_the_same_processor(image_processor, image, loader, kind, tmp_path):
    processor = ArlowProcessor(image_processor, kind())
    ArlowVLConfig().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is ArlowProcessor and type(loaded.tokenizer) is ArlowTokenizerFast
    assert loaded.chat_template == processor.chat_template
    expected, batch = (p(text="<image>a", images=image, return_tensors="pt") for p in (processor, loaded))
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ArlowImageProcessor


def test_a_pickled_processor_gives_the_same(processor, image):
    again = pickle.loads(pickle.dumps(processor))
    assert torch.equal(again(images=image).pixel_values, processor(images=image).pixel_values)
