"""What a recipe says of encoder, images and projector: through a run, and into the model that comes out of it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from arlow_vl.data.formats.webdataset import read_whole
from arlow_vl.errors import DataError
from arlow_vl.models.folders import load_vision_language_model
from arlow_vl.training.build import build_image_text
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import SAMPLES, write_encoder_weights, write_image_text_recipe
from vision.encoder import VisionEncoder

# One word of each: how an image reaches the encoder, what of the encoder is read, what brings it to the decoder.
SETTINGS = {
    "tiles": {"transform": {"max_tiles": 4}, "model": {"projector": "linear"}},
    "native": {"transform": {"max_patches": 9}, "blocks": [2, 5]},
    "not square": {
        "image_size": [64, 32],
        "prefix_tokens": True,
        "model": {"projector": "perceiver", "projector_latents": 3},
    },
}


def write_recipe(folder, settings, **changes):
    """`settings` go into `vision`, but for those of `model`."""
    weights = write_encoder_weights(folder / "vit.safetensors", "test_vit")
    vision = {"timm_name": "test_vit", "weights": str(weights), "image_size": 32} | settings
    changes = {"model": vision.pop("model", {})} | changes
    run = {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2, "threads": 1, "validation_samples": 3}
    return write_image_text_recipe(folder, **({"vision": vision, "run": run} | changes))


def losses(run_dir):
    lines = (run_dir / "steps.jsonl").read_text().splitlines()
    return [float.fromhex(json.loads(line)["loss"]) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By setting, the folders of two runs: images decoded and encoded in every step, and out of an exact cache."""
    folders = {}
    for name, settings in SETTINGS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        config = write_recipe(folder, settings, cache_dtype="float32")
        for source, options in {"pixels": ["--cache_features", "null"], "cache": []}.items():
            fit(parse_recipe(["--config", str(config), "--run_dir", str(folder / source), *options]))
        folders[name] = folder / "pixels", folder / "cache"
    return folders


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_from_the_cache_has_the_losses_of_one_from_pixels(runs, setting):
    from_pixels, from_cache = map(losses, runs[setting])
    assert len(from_pixels) == 2
    # In other batches the encoder's products round differently.
    assert from_cache == pytest.approx(from_pixels, rel=1e-5)


def test_features_are_computed_on_the_device_of_the_run(tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(VisionEncoder, "to", lambda self, device: devices.append(device) or self)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
    options = ["--config", str(write_recipe(tmp_path, {})), "--run.engine.accelerator", "cuda"]
    build_image_text(parse_recipe(options))
    assert devices == ["cuda", "cpu"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_sees_what_the_recipe_says(runs, setting):
    model, processor = load_vision_language_model(runs[setting][1] / "hf")
    settings, vision = SETTINGS[setting], model.config.vision_config
    assert vision.prefix_tokens == settings.get("prefix_tokens", False)
    assert model.config.projector == settings.get("model", {}).get("projector", "mlp")
    inputs = processor(text="<image>a", images=Image.new("RGB", (90, 40), "red"), return_tensors="pt")
    pooled = model(**inputs).image_outputs.pooler_output
    tokens = {"tiles": 4 * 4, "native": 2 * 4, "not square": 3}  # a thumbnail and 1 x 3 tiles; 2 x 4 patches
    assert [len(states) for states in pooled] == [tokens[setting]]


def test_metrics_count_images_not_tiles(runs):
    rows = [line.split(",") for line in (runs["tiles"][0] / "metrics.csv").read_text().splitlines()]
    rates = {name: float(rows[1][rows[0].index(f"{name}_per_second")]) for name in ("images", "tokens")}
    steps = [json.loads(line) for line in (runs["tiles"][0] / "steps.jsonl").read_text().splitlines()]
    assert len(steps[0]["keys"]) == 5
    assert rates["images"] < rates["tokens"]


def test_a_run_keeps_its_features_as_the_recipe_says(tmp_path):
    config = write_recipe(tmp_path, {}, cache_dtype="bfloat16")
    fit(parse_recipe(["--config", str(config)]))
    (folder,) = (tmp_path / "features").iterdir()
    assert folder.name.endswith("-bfloat16")


def spoil_a_shard(folder):
    """Copies the training captions, one image of ten cut; returns the path, the key of the image, and the samples."""
    shard = next((SAMPLES / "captions").glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    samples = read_whole([shard])
    bad = samples[1]
    image = bad.images[0]
    end = image.offset + image.size
    data[end - image.size // 2 : end] = bytes(image.size // 2)
    path = folder / "spoilt-000000.tar"
    path.write_bytes(data)
    return path, bad.key.partition(":")[2], len(samples)


@pytest.mark.parametrize("cached", [True, False])
def test_a_broken_image_is_skipped_and_counted_or_ends_the_run_as_the_recipe_says(tmp_path, capsys, cached):
    shard, bad, count = spoil_a_shard(tmp_path)
    source = {"name": "captions", "data": str(shard), "kind": "captions", "samples_per_batch": count}
    changes = {"sources": [source]} | ({} if cached else {"cache_features": None})
    config = write_recipe(tmp_path, {}, **changes)
    fit(parse_recipe(["--config", str(config), "--run_dir", str(tmp_path / "tolerant"), "--max_bad_fraction", "0.5"]))
    told = capsys.readouterr().err
    assert "captions" in told and ("truncated 1" in told or "corrupt 1" in told)
    steps = (tmp_path / "tolerant" / "steps.jsonl").read_text()
    assert len(losses(tmp_path / "tolerant")) == 2 and f":{bad}" not in steps
    strict = ["--config", str(config), "--run_dir", str(tmp_path / "strict"), "--max_bad_fraction", "0"]
    with pytest.raises(DataError, match=f"{bad}|image_"):
        fit(parse_recipe(strict))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"transform": {"max_tiles": 4, "max_patches": 9}}, "tiles or its native resolution"),
        ({"transform": {"max_tiles": 100}}, "max_tiles must be 1 to 64, got 100"),
        ({"model": {"projector_latents": 0}}, "projector_latents must be at least 1"),
        ({"blocks": [99]}, "test_vit has 6 blocks"),
    ],
)
def test_settings_that_do_not_go_together_end_the_run_before_it_starts(tmp_path, settings, sentence):
    config = write_recipe(tmp_path, settings)
    with pytest.raises(ValueError, match=sentence):
        fit(parse_recipe(["--config", str(config)]))
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def test_native_resolution_without_patches_is_refused_with_a_way_out(tmp_path):
    config = write_image_text_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"test_efficientnet has no square patches.*name a ViT"):
        fit(parse_recipe(["--config", str(config), "--vision.transform.max_patches", "9"]))


def test_an_encoder_that_trains_learns_from_tiles(tmp_path):
    policy = {"vision": "train", "projector": "train", "cross_attention": "train", "decoder": "frozen"}
    config = write_recipe(
        tmp_path, {"transform": {"max_tiles": 2}}, policy=policy, cache_features=None, optim={"lr": 1e-2}
    )
    product = fit(parse_recipe(["--config", str(config)]))
    model, _ = load_vision_language_model(product)
    before = load_file(tmp_path / "vit.safetensors")
    after = model.model.vision.backbone.state_dict()
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert any("blocks.0" in name for name in moved)
