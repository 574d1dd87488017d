"""The dial of sizes: what a name holds, and what a recipe makes of it."""

import pytest
import torch
import yaml

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.training.recipe import to_plain
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.sizes import SIZES, fields_of_size, lr_of_width
from tests.tiny_runs import write_image_text_recipe, write_text_recipe

OPTIM = {"warmup_steps": 2}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_as_many_parameters_as_its_name_says(size):
    config = ArlowConfig(vocab_size=32768, use_cross_attention=False, **fields_of_size(size))
    with torch.device("meta"):
        model = ArlowForCausalLM(config)
    billions = float(size.removesuffix("b"))
    assert model.num_parameters() == pytest.approx(billions * 1e9, rel=0.1)


@pytest.mark.parametrize("size", SIZES)
def test_every_width_is_one_that_kernels_and_devices_share_out(size):
    fields = fields_of_size(size)
    assert fields["head_dim"] == 64 and fields["num_attention_heads"] * 64 == fields["hidden_size"]
    assert fields["intermediate_size"] % 128 == 0
    assert 2 <= fields["num_attention_heads"] / fields["num_key_value_heads"] <= 5
    assert fields["num_hidden_layers"] % fields["cross_attention_interval"] == 0  # the last layer has a block


def test_the_series_grows_in_width_and_depth_while_its_rate_falls():
    shapes = list(SIZES.values())
    assert shapes == sorted(shapes) and [depth for _, depth in shapes] == sorted(depth for _, depth in shapes)
    assert lr_of_width(192) == 4e-3 and lr_of_width(768) == 1e-3 and lr_of_width(2560) == 3e-4


def test_a_recipes_size_becomes_fields_and_a_rate_beside_which_given_ones_stay(tmp_path):
    path = write_text_recipe(tmp_path, model={"size": "0.02b", "num_hidden_layers": 4}, optim=OPTIM)
    recipe = parse_recipe(["--config", str(path)])
    assert "size" not in recipe.model
    assert (recipe.model["hidden_size"], recipe.model["num_hidden_layers"]) == (320, 4)
    assert recipe.optim.lr == 2.4e-3
    assert parse_recipe(["--config", str(path), "--optim.lr", "1e-4"]).optim.lr == 1e-4
    assert parse_recipe(["--config", str(path), "--model.size", "0.1b"]).model["hidden_size"] == 768


def test_a_depth_below_the_interval_of_the_series_makes_it_smaller(tmp_path):
    path = write_text_recipe(tmp_path, model={"size": "0.02b", "num_hidden_layers": 2}, optim=OPTIM)
    assert parse_recipe(["--config", str(path)]).model["cross_attention_interval"] == 2
    given = ["--model.num_hidden_layers", "3", "--model.cross_attention_interval", "1"]
    assert parse_recipe(["--config", str(path), *given]).model["cross_attention_interval"] == 1


def test_a_resolved_recipe_names_what_its_size_became(tmp_path):
    """So that a run goes on with the same model where a later version draws the series otherwise."""
    path = write_text_recipe(tmp_path, model={"size": "0.05b"}, optim=OPTIM)
    recipe = parse_recipe(["--config", str(path)])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(to_plain(recipe)))
    assert parse_recipe(["--config", str(resolved)]) == recipe


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("0.2b", "model.size '0.2b' is unknown; did you mean 0.02b?"),
        ("large", "known are 0.02b, 0.05b, 0.1b, 0.3b, 0.8b, 1.5b, 3b"),
        (0.1, "model.size 0.1 is unknown"),
        (["0.1b"], "model.size ['0.1b'] is unknown"),
        ({"a": 1}, "model.size {'a': 1} is unknown"),
    ],
)
def test_an_unknown_size_is_refused_with_those_there_are(tmp_path, size, sentence):
    path = write_text_recipe(tmp_path, model={"size": size})
    with pytest.raises(ValueError) as raised:
        parse_recipe(["--config", str(path)])
    assert sentence in str(raised.value) and str(raised.value).startswith(f"recipe {path}: ")


def test_a_recipe_on_images_must_name_its_rate(tmp_path):
    path = write_image_text_recipe(tmp_path, optim={"warmup_steps": 1})
    with pytest.raises(ValueError, match=r"optim\.lr is missing; give the peak learning rate"):
        parse_recipe(["--config", str(path)])
