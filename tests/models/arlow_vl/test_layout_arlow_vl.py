"""Batches as the loader makes them carry their layout: same loss, same gradients, and no step waits for the device."""

import functools
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.collate import PackedRowsCollate, SampleCollate
from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.sample_dataset import EncodedSample, EncodedText
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.layout_arlow_vl import image_lengths, layout_of
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.training.datamodules import ON_THE_CPU, StageData
from arlow_vl.training.modules import NOT_FOR_THE_MODEL
from tests.conftest import open_gates
from tests.models.host_reads import META, host_reads_refused
from vision.encoder import VisionEncoder
from vision.forms.batches import pack_images
from vision.forms.tiling import Tiles

PAD, IMAGE, SIDE = 3, 7, 32
FORMS = {"one size": {}, "tiles": {"max_tiles": 6}, "native": {"max_patches": 16, "patch_size": 16}}
PROJECTORS = ("mlp", "perceiver")


@functools.cache
def built(
    form: str, projector: str, timm_name: str = "test_vit", device: str = "cpu"
) -> ArlowVLForConditionalGeneration:
    torch.manual_seed(0)
    text = ArlowConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        cross_attention_interval=2,
    )
    vision = ArlowVisionConfig(timm_name=timm_name, image_size=SIDE, transform=FORMS[form])
    config = ArlowVLConfig(text_config=text, vision_config=vision, projector=projector, projector_latents=3)
    model = ArlowVLForConditionalGeneration(config)
    open_gates(model.model.language_model)
    transform = model.model.vision.image_transform(**FORMS[form])
    model.config.vision_config.transform = transform.to_dict()
    return model.to(device).train()


TENSORS = {"input_ids", "pixel_values", "image_features", "image_index", *ON_THE_CPU}


class MadeImages:
    """Images of numbers, in the form that the model's transform would give; as pixels or as cached features."""

    def __init__(self, model, form: str, *, cached: bool) -> None:
        self.transform = model.model.vision.image_transform(**FORMS[form])
        self.encoder, self.form, self.cached = model.model.vision, form, cached

    def prepare(self, image):
        return image

    def one(self, image: tuple[int, int]):
        rows, columns = image
        if self.form == "native":
            return torch.randn(3, rows * 16, columns * 16)
        if self.form == "one size":
            return torch.randn(3, SIDE, SIDE)
        tiles = 1 + rows * columns
        return Tiles(torch.randn(tiles, 3, SIDE, SIDE), torch.arange(tiles), (rows, columns))

    def pack(self, prepared):
        packed = pack_images(self.transform, [self.one(image) for image in prepared])
        if not self.cached:
            return packed
        with torch.no_grad():
            pixels = packed.pop("pixel_values")
            if self.form != "native":
                return packed | {"image_features": self.encoder(pixels)}
            features, lengths = self.encoder.forward_native(pixels, packed["image_grids"])
            return packed | {"image_features": features, "encoder_lengths": lengths}


@st.composite
def samples(draw):
    """Samples of up to two images of any grid, each with up to three texts about them; the first may have none."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        grids = draw(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), max_size=2))
        texts = []
        for _ in range(draw(st.integers(1, 3))):
            words = draw(st.lists(st.integers(20, 50), min_size=1, max_size=4))
            ids = [20 + number, *[IMAGE] * len(grids), *words]
            texts.append(EncodedText(ids, [IGNORED, *(IGNORED if i == IMAGE else i for i in ids[1:])]))
        found.append(EncodedSample(texts, grids))
    return found


def batch_of(model, form, items, *, packed: bool, cached: bool) -> dict:
    images = MadeImages(model, form, cached=cached)
    how = {"pad_token_id": PAD, "layout_of": partial(layout_of, model.config, model.model.vision)}
    if not packed:
        return SampleCollate(images, **how)(items)
    return PackedRowsCollate(images, row_tokens=24, **how)([[(item, None)] for item in items])


def inputs_of(batch: dict) -> dict:
    kept = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
    return kept | {"use_cache": False, "skip_logits": True}


def loss_and_gradients(model, inputs) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


CASES = pytest.mark.parametrize(("form", "projector"), [(form, name) for form in FORMS for name in PROJECTORS])


@settings(max_examples=4)
@CASES
@given(items=samples(), packed=st.booleans(), cached=st.booleans())
def test_loss_and_gradients_are_the_same_bit_for_bit(form, projector, items, packed, cached):
    model = built(form, projector)
    batch = batch_of(model, form, items, packed=packed, cached=cached)
    inputs = inputs_of(pickle.loads(pickle.dumps(batch)))  # as it comes from a process that reads data
    found = loss_and_gradients(model, inputs)
    expected = loss_and_gradients(model, {name: value for name, value in inputs.items() if name != "layout"})
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert batch["num_labels"] == int((batch["labels"][:, 1:] >= 0).sum())


@CASES
@pytest.mark.parametrize(("packed", "cached"), [(False, False), (True, True)], ids=["padded, pixels", "packed, cached"])
def test_a_training_step_waits_for_no_device(form, projector, packed, cached):
    text = EncodedText([20, IMAGE, 21, 22], [IGNORED, IGNORED, 21, 22])
    items = [EncodedSample([text, text], [(1, 2)]), EncodedSample([text], [(2, 2)]), EncodedSample([text], [(1, 1)])]
    batch = batch_of(built(form, projector), form, items, packed=packed, cached=cached)
    step_on_meta(built(form, projector, device="meta"), batch)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_training_step_without_images_waits_for_no_device(packed):
    text = EncodedText([20, 21, 22], [IGNORED, 21, 22])
    samples = [EncodedSample([text], [])] * 2
    batch = batch_of(built("one size", "mlp"), "one size", samples, packed=packed, cached=False)
    assert batch["num_images"] == 0 and batch["layout"].segments is None
    step_on_meta(built("one size", "mlp", device="meta"), batch)


def test_a_text_that_asks_for_an_image_that_is_not_there_is_refused():
    text = EncodedText([20, IMAGE, 22], [IGNORED, IGNORED, 22])
    with pytest.raises(ValueError, match="the text holds 1 <image>"):
        batch_of(built("one size", "mlp"), "one size", [EncodedSample([text], [])], packed=False, cached=False)


def step_on_meta(model, batch) -> None:
    inputs = inputs_of(StageData.transfer_batch_to_device(StageData.__new__(StageData), batch, META, 0))
    assert all(inputs[name].device.type == ("cpu" if name in ON_THE_CPU else "meta") for name in TENSORS & {*inputs})
    with host_reads_refused():
        model(**inputs).loss.backward()


@CASES
@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("timm_name", ["test_vit", "test_efficientnet"])
def test_the_lengths_of_images_are_those_that_the_encoder_gives(form, projector, cached, timm_name):
    if timm_name != "test_vit" and form == "native" and cached:
        pytest.skip("features of a net without patches in native resolution have no places")
    model = built(form, projector, timm_name)
    packed = MadeImages(model, form, cached=cached).pack([(1, 2), (2, 3), (1, 1), (2, 2)])
    encoded = model.model.encode_images(**packed)
    lengths = encoded.lengths if encoded.lengths is not None else torch.tensor([len(x) for x in encoded.states])
    assert torch.equal(image_lengths(model.config, model.model.vision, packed), lengths)


@pytest.mark.parametrize("timm_name", ["test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("prefix_tokens", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_an_encoder_tells_its_tokens_without_an_image(timm_name, prefix_tokens, size):
    encoder = VisionEncoder(timm_name, image_size=SIDE, prefix_tokens=prefix_tokens).eval()
    assert encoder.num_tokens(*size) == encoder(torch.zeros(1, 3, *size)).shape[1]
