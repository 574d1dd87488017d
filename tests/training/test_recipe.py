"""Recipes from YAML and the command line; what is wrong is said in one sentence."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from arlow_vl.training.recipe import (
    RECIPES,
    ImageTextRecipe,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TextRecipe,
    differences,
    first_difference,
    to_plain,
)
from arlow_vl.training.recipe_parsing import parse_recipe
from tests.tiny_runs import write_text_recipe

IMAGE_TEXT = {
    "stage": "image_text",
    "run_dir": "runs/b",
    "text_checkpoint": "runs/a/hf",
    "vision": {"timm_name": "vit", "weights": "w.safetensors", "blocks": [1, 2]},
    "sources": [{"name": "captions", "data": "c-*.tar", "kind": "captions", "samples_per_batch": 4}],
    "validation_sources": [{"name": "held-out", "data": "v.tar", "kind": "questions", "samples_per_batch": 8}],
    "policy": {"vision": "frozen", "projector": "train", "cross_attention": "train", "decoder": "frozen"},
    "run": {"max_steps": 4, "validate_every": 2, "checkpoint_every": 2},
    "optim": {"lr": 0.001},
    "cache_features": "features",
}


def write(path: Path, values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_text_recipe_is_read(tmp_path):
    recipe = parse_recipe(["--config", str(write_text_recipe(tmp_path))])
    assert isinstance(recipe, TextRecipe)
    assert recipe.run_dir == tmp_path / "run"
    assert recipe.optim == OptimConfig(lr=3e-3, warmup_steps=2)
    assert recipe.policy == {"decoder": "train", "cross_attention": "frozen"}


def test_an_image_text_recipe_is_read(tmp_path):
    recipe = parse_recipe(["--config", str(write(tmp_path / "r.yaml", IMAGE_TEXT))])
    assert isinstance(recipe, ImageTextRecipe)
    assert recipe.sources == [SourceConfig(**IMAGE_TEXT["sources"][0])]
    assert recipe.vision == IMAGE_TEXT["vision"]


def test_the_command_line_overrides_the_file(tmp_path):
    config = str(write_text_recipe(tmp_path))
    recipe = parse_recipe(["--config", config, "--optim.lr", "1e-4", "--run.seed=7", "--model.hidden_size", "16"])
    assert (recipe.optim.lr, recipe.run.seed) == (1e-4, 7)
    assert recipe.model["hidden_size"] == 16
    assert recipe.model["num_hidden_layers"] == 2


def test_a_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = parse_recipe(["--config", str(write(tmp_path / "r.yaml", IMAGE_TEXT))])
    assert parse_recipe(["--config", str(write(tmp_path / "again.yaml", to_plain(recipe)))]) == recipe


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optimm": {}}, "unknown key optimm; did you mean optim?"),
        ({"optim": {"learning_rat": 1}}, "optim: unknown key learning_rat"),
        ({"run": {"max_step": 1}}, "run: unknown key max_step; did you mean max_steps?"),
        ({"optim": {"lr": "fast"}}, 'Parser key "optim.lr": Expected a float or null. Got value: fast'),
        ({"optim": {"lr": -1}}, "optim.lr must be positive, got -1"),
        ({"optim": {}, "checkpoint": "elsewhere", "model": {}, "tokenizer": None}, "optim.lr is missing"),
        ({"stage": "speech"}, "stage must be text or image_text, got 'speech'"),
        (
            {"policy": {"decoder": "train", "cross_attention": "train"}},
            "policy.cross_attention is to be trained, but a text",
        ),
        ({"row_length": 0}, "row_length must be at least 1, got 0"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(tmp_path, change, sentence):
    config = write_text_recipe(tmp_path, **change)
    with pytest.raises(ValueError) as refusal:
        parse_recipe(["--config", str(config)])
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--optim.leraning_rate", "1"], "unknown option --optim.leraning_rate"),
        (["--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["--run.max_steps", "7"], r"run.max_steps \(7\) must be a multiple of run.validate_every \(4\)"),
        (
            ["--policy.decoder", "{treatment: train}", "--policy.decoder.blocks", "[0, 1"],
            r"--policy.decoder.blocks is not YAML: line 2, column 1: ",
        ),
        (
            ["--policy.decoder", "{treatment: train}", "--policy.decoder.lr", ".inf"],
            "policy.decoder.lr is inf; give a finite number",
        ),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(["--config", str(write_text_recipe(tmp_path)), *arguments])


@pytest.mark.parametrize("component", ["vision", "projector", "cross_attention"])
def test_what_only_images_reach_is_not_trained_on_text_alone(tmp_path, component):
    policy = dict.fromkeys(("vision", "projector", "cross_attention"), "frozen") | {"decoder": "train"}
    sources = [source | {"kind": "text"} for source in IMAGE_TEXT["sources"]]
    values = IMAGE_TEXT | {"sources": sources, "policy": policy}
    parse_recipe(["--config", str(write(tmp_path / "frozen.yaml", values))])
    values["policy"] = policy | {component: "train"}
    with pytest.raises(ValueError, match=f"policy.{component} is to be trained, but all sources are of kind text"):
        parse_recipe(["--config", str(write(tmp_path / "trained.yaml", values))])


def test_a_misspelt_key_in_a_list_is_named(tmp_path):
    source = {"name": "a", "dta": "c-*.tar", "kind": "captions", "samples_per_batch": 4}
    with pytest.raises(ValueError, match=r"unknown key dta; did you mean data\?"):
        parse_recipe(["--config", str(write(tmp_path / "r.yaml", {**IMAGE_TEXT, "sources": [source]}))])


@pytest.mark.parametrize("content", ["a: [", "just words", ""])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"bad.yaml (is not YAML|must hold keys and values)"):
        parse_recipe(["--config", str(tmp_path / "bad.yaml")])


def test_a_missing_recipe_is_named():
    with pytest.raises(ValueError, match=r"recipe nowhere.yaml does not exist"):
        parse_recipe(["--config", "nowhere.yaml"])


def test_a_feature_cache_needs_a_frozen_encoder(tmp_path):
    policy = {**IMAGE_TEXT["policy"], "vision": "train"}
    with pytest.raises(ValueError, match=r"cache_features needs policy.vision frozen"):
        parse_recipe(["--config", str(write(tmp_path / "r.yaml", {**IMAGE_TEXT, "policy": policy}))])


def test_the_command_line_overrides_fields_of_the_encoder_and_of_its_transform(tmp_path):
    config = str(write(tmp_path / "r.yaml", IMAGE_TEXT))
    overrides = "--vision.image_size 64 --vision.transform.max_tiles 4 --model.projector linear --vision.blocks [3]"
    recipe = parse_recipe(["--config", config, *overrides.split()])
    assert recipe.vision == IMAGE_TEXT["vision"] | {"image_size": 64, "transform": {"max_tiles": 4}, "blocks": [3]}
    assert recipe.model == {"projector": "linear"}


def test_the_command_line_overrides_what_lies_deep_in_a_field_of_the_model(tmp_path):
    override = ["--model.rope_parameters.rope_theta", "5e4", "--model.rope_parameters.rope_type=default"]
    recipe = parse_recipe(["--config", str(write_text_recipe(tmp_path)), *override])
    assert recipe.model["rope_parameters"] == {"rope_theta": 5e4, "rope_type": "default"}
    with pytest.raises(ValueError, match=r"--model\.hidden_size\.x: hidden_size is 32, which has no fields"):
        parse_recipe(["--config", str(write_text_recipe(tmp_path)), "--model.hidden_size.x", "3"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vision": {"timm_nam": "vit"}}, "vision: unknown key timm_nam; did you mean timm_name?"),
        ({"vision": {"wights": "w"}}, "vision: unknown key wights; did you mean weights?"),
        ({"vision": {"num_labels": 3}}, "vision: unknown key num_labels; known are timm_name, blocks, "),
        ({"vision": {"image_size": "large"}}, "vision: .*'image_size'.*'large'"),
        ({"vision": {"transform": {"max_tile": 4}}}, "vision: transform has no 'max_tile'; did you mean max_tiles?"),
        ({"vision": {"transform": {"max_tiles": "4"}}}, "vision: transform: max_tiles must be a whole number, got '4'"),
        ({"vision": {"transform": {"max_tiles": None}}}, "vision: transform: max_tiles must be a whole number"),
        ({"vision": {"transform": {"max_patches": 9.5}}}, "vision: transform: max_patches must be a whole number"),
        ({"vision": {"weights": None}}, "vision.weights must name a file of the encoder's weights, got None"),
        ({"model": {"projektor": "mlp"}}, "model: unknown key projektor; did you mean projector?"),
        ({"model": {"projector": "mpl"}}, "model: .*'projector'.*, got mpl"),
        ({"model": {"projector_latents": 0}}, "model: projector_latents must be at least 1, got 0"),
        ({"model": {"gate_opening": 1.0}}, r"model: gate_opening must be from 0 to below 1 .*, got 1.0"),
        ({"model": {"gate_opening": "wide"}}, "model: .*'gate_opening'.*'wide'"),
        ({"model": {"vision_config": {}}}, "model: unknown key vision_config; known are projector"),
    ],
    ids=str,
)
def test_a_field_of_the_model_that_is_wrong_is_named_with_the_recipe(tmp_path, change, sentence):
    values = IMAGE_TEXT | {name: {**IMAGE_TEXT.get(name, {}), **fields} for name, fields in change.items()}
    config = write(tmp_path / "r.yaml", values)
    with pytest.raises(ValueError, match=f"^recipe {config}: {sentence.replace('?', '[?]')}") as refusal:
        parse_recipe(["--config", str(config)])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--model.hidden_sizes", "4"], "model: ArlowConfig has no field 'hidden_sizes'; did you mean hidden_size?"),
        (["--model.hidden_size", "big"], "model: .*'hidden_size'.*'big'"),
    ],
)
def test_a_field_of_the_text_model_that_is_wrong_is_named_with_the_recipe(tmp_path, option, sentence):
    config = write_text_recipe(tmp_path)
    with pytest.raises(ValueError, match=f"^recipe {config}: {sentence.replace('?', '[?]')}"):
        parse_recipe(["--config", str(config), *option])


def test_the_first_differing_key_is_named():
    old, new = {"a": 1, "optim": {"lr": 0.1, "floor": 0}}, {"a": 1, "optim": {"lr": 0.2, "floor": 1}}
    assert first_difference(old, new) == "optim.lr was 0.1 and is 0.2"
    assert first_difference(old, old) is None


def test_what_differs_in_a_source_is_named_with_the_source():
    def plain(names: list[str], weights: list[float], steps: list[int]) -> dict:
        sources = [{"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
        return {"sources": sources, "skip_steps": steps}

    old = plain(["a", "b.c"], [0.5, 0.5], [1])
    assert differences(old, plain(["a", "b.c"], [0.6, 0.4], [1, 2])) == [
        "sources.a.weight was 0.5 and is 0.6",
        "sources.b.c.weight was 0.5 and is 0.4",
        "skip_steps was [1] and is [1, 2]",
    ]
    assert differences(old, plain(["a", "d"], [0.5, 0.5], [1])) == ["sources was ['a', 'b.c'] and is ['a', 'd']"]
    assert differences(old, old) == []


@pytest.mark.parametrize("config_class", [*RECIPES.values(), RunConfig, OptimConfig, SourceConfig])
def test_no_config_has_more_than_sixteen_fields(config_class):
    assert len(dataclasses.fields(config_class)) <= 16


def source(**fields) -> dict:
    return {"name": "a", "data": "c-*.tar"} | fields


PACKING = {"row_tokens": 512, "row_images": 4, "rows_per_batch": 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sources": [source()]}, "source a needs samples_per_batch"),
        ({"sources": [source(samples_per_batch=2, weight=1.0)]}, "weight goes with packing; leave it out"),
        ({"sources": [source(samples_per_batch=2)], "packing": PACKING}, "samples_per_batch goes without packing"),
        ({"sources": [source()], "packing": PACKING | {"row_tokens": 64}}, r"row_tokens \(64\) must be at least max_l"),
        ({"sources": [source(samples_per_batch=2)] * 2}, "two sources are called a; give each a name of its own"),
        ({"sources": [source(samples_per_batch=2, name="a,b")]}, "name 'a,b' must be letters"),
        ({"sources": [source(samples_per_batch=0)]}, "samples_per_batch must be over 0"),
        ({"sources": [source(weight=-1.0)], "packing": PACKING}, "the weight of a must be a number from 0 on, got -1"),
        ({"sources": [source(weight=0.0)], "packing": PACKING}, "weights: no source has a weight over 0"),
        ({"sources": [source(weight={0: 1.0, 9: 0.0})], "packing": PACKING}, "weights of step 9: no source has a weig"),
        ({"sources": [source(weight={-1: 1.0, 9: 1.0})], "packing": PACKING}, "weights of step -1: steps count from 0"),
        ({"sources": [source(weight={})], "packing": PACKING}, "source a: weight names no step; give a number"),
        ({"validation_sources": [source()]}, "validation source a needs samples_per_batch"),
        (
            {"validation_sources": [source(samples_per_batch=2, weight=1.0)]},
            "validation source a: weight is for training alone; leave it out",
        ),
        (
            {"validation_sources": [source(samples_per_batch=2, epochs=1.0)]},
            "validation source a: epochs is for training alone; leave it out",
        ),
    ],
)
def test_shares_that_do_not_go_together_are_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(["--config", str(write(tmp_path / "r.yaml", {**IMAGE_TEXT, **changes}))])


def test_packed_sources_have_weights_by_step_and_epochs(tmp_path):
    sources = [source(weight={0: 1.0, 100: 0.5}, epochs=2), source(name="b")]
    recipe = parse_recipe(
        ["--config", str(write(tmp_path / "r.yaml", {**IMAGE_TEXT, "sources": sources, "packing": PACKING}))]
    )
    assert recipe.sources[0].weight == {0: 1.0, 100: 0.5} and recipe.sources[1].weight is None


def test_an_unknown_kind_names_key_and_value_without_classes(tmp_path):
    sources = [source(kind="foo", samples_per_batch=2)]
    with pytest.raises(ValueError, match=r"sources\.kind: Expected .*captions.*foo") as caught:
        parse_recipe(["--config", str(write(tmp_path / "r.yaml", {**IMAGE_TEXT, "sources": sources}))])
    assert "class_path" not in str(caught.value) and "arlow_vl.training" not in str(caught.value)
