"""The table of timm nets in docs/vision.md is what is found when they are tried."""

import re

import pytest
import torch

from experiments.encoders.tried import BEGIN, END, NETS, PAGE, SIZES, as_row, try_net
from vision.encoder import VisionEncoder
from vision.forms.native_resolution import patchify

TABLE = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
A_HANDFUL = ("ViT", "DeiT, distilled", "Swin", "PVT v2", "XCiT", "MobileNetV4", "PiT")


@pytest.mark.parametrize("family", A_HANDFUL)
def test_a_net_is_as_the_page_says(family):
    name = NETS[family]
    assert as_row(family, try_net(name, SIZES.get(name))) in TABLE.splitlines()


def test_the_page_names_every_net_that_is_tried():
    assert re.findall(r"^\| .+? \| `(\w+)`", TABLE, re.MULTILINE) == list(NETS.values())


def test_a_net_whose_own_size_is_no_whole_number_of_patches_says_which_is():
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"384 x 384 pixels, .* patches of 14; set image_size to 378"),
    ):
        VisionEncoder("vit_so400m_patch14_siglip_384")


def test_patches_of_a_stems_output_are_not_taken_for_patches_of_pixels():
    name = "vit_tiny_r_s16_p8_224"
    with torch.device("meta"):
        encoder = VisionEncoder(name).eval()
        assert encoder.num_tokens(128, 256) == encoder(torch.empty(1, 3, 128, 256)).shape[1]
    with pytest.raises(ValueError, match=f"{name} has no square patches, so images cannot keep their resolution"):
        encoder.image_transform(max_patches=64)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_a_map_of_an_image_in_its_native_resolution_is_that_of_the_image_alone(name):
    encoder = VisionEncoder(name).eval()
    side = encoder.patch_size
    images = [torch.randn(3, 16 * side, 9 * side), torch.randn(3, 8 * side, 24 * side)]
    tokens, lengths = encoder.forward_native(*patchify(images, side))
    assert lengths.tolist() == [encoder.num_tokens(*image.shape[1:]) for image in images]
    for got, image in zip(tokens.split(lengths.tolist()), images, strict=True):
        assert torch.equal(got, encoder(image[None])[0])


def test_a_patch_size_that_is_one_number_counts_for_both_sides():
    with torch.device("meta"):
        assert VisionEncoder("xcit_tiny_12_p16_224", image_size=112).num_patches == 49
