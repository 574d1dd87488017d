"""Operations of a step, the peak they are measured by, and the time that a step waits for data."""

import csv
import time

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.training.operations import Counts, operations_of, pairs_of
from arlow_vl.training.policy import read_policy
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from arlow_vl.training.speed import FETCH, WaitingForData, matmul_peak, memory_gib
from arlow_vl.training.stages import apply_policy
from tests.conftest import open_gates
from tests.tiny_runs import TINY_MODEL, write_image_text_recipe, write_text_checkpoint, write_text_recipe

TEXT = {"decoder": "train", "cross_attention": "frozen"}


def text_model(**changes) -> ArlowForCausalLM:
    model = ArlowForCausalLM(ArlowConfig(vocab_size=300, **{**TINY_MODEL, **changes}))
    apply_policy(model, TEXT)
    return model


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_operations_of_a_trained_text_model_are_six_a_weight_and_token(is_tied):
    model = text_model(tie_word_embeddings=is_tied)
    layers = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "layers" in name and "cross" not in name
    )
    head = model.lm_head.weight.numel()
    counts = Counts(tokens=10, labels=7)
    assert operations_of(model).of(counts, 0.0) == 6 * (10 * layers + 7 * head)


def test_attention_costs_four_operations_a_pair_channel_and_layer_and_twice_as_many_on_the_way_back():
    model = text_model()
    assert operations_of(model).of(Counts(), 55.0) == 3 * 4 * 55 * TINY_MODEL["hidden_size"] * 2


STAGES = {
    "text": (TEXT, {}),
    "last layers": ({"decoder": {"treatment": "train", "blocks": [2, 4]}, "cross_attention": "frozen"}, {}),
    "adapters": (
        {"decoder": {"treatment": "lora", "targets": ["gate_proj"], "rank": 2}, "cross_attention": "frozen"},
        {},
    ),
    "vision": ({"cross_attention": "train", "decoder": "frozen"}, {"vision": "frozen", "projector": "train"}),
    "frozen projector": (
        {"cross_attention": "train", "decoder": "frozen"},
        {"vision": "frozen", "projector": "frozen"},
    ),
    "projector alone": ({"cross_attention": "frozen", "decoder": "frozen"}, {"vision": "frozen", "projector": "train"}),
}
DEPTH, ROWS, LENGTH = 4, 2, 8


@pytest.mark.parametrize("stage", STAGES)
def test_operations_are_those_that_torch_counts(tmp_path, stage):
    text, images = STAGES[stage]
    changes = {"num_hidden_layers": DEPTH, "attention_dropout": 0.0, "max_position_embeddings": 64}
    folder = write_text_checkpoint(tmp_path, **changes)
    ids = torch.arange(20, 20 + ROWS * LENGTH).view(ROWS, LENGTH)
    counts = Counts(tokens=ids.numel(), labels=ids.numel())  # with logits, the head is multiplied with every token
    batch = {"labels": ids}
    if images:
        config = ArlowVisionConfig(timm_name="test_vit", image_size=64)
        model = ArlowVLForConditionalGeneration.from_text_checkpoint(folder, config)
        ids[:, 0] = model.config.image_token_id
        features = torch.randn(ROWS, model.model.vision.num_patches, model.model.vision.embed_dim)
        counts.images, counts.features = ROWS, features.shape[:-1].numel()
        batch["image_features"] = features
    else:
        model = ArlowForCausalLM.from_pretrained(folder)
    open_gates(model)
    model.set_attn_implementation("eager")  # which computes every pair
    apply_policy(model, read_policy(text | images))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, **batch).loss.backward()
    # Where gradients begin inside a layer, what stands beside that place counts as what stands behind it.
    tolerance = 0.03 if stage in ("adapters", "projector alone") else 0
    needed = operations_of(model).of(counts, float(ROWS * LENGTH**2))
    assert needed == pytest.approx(counter.get_total_flops(), rel=tolerance, abs=0)


def test_blocks_that_no_image_enters_need_no_operations():
    operations = operations_of(text_model())
    without = operations.of(Counts(tokens=10), 0.0)
    assert operations.of(Counts(tokens=10, images=1, features=5), 0.0) > without
    assert operations.of(Counts(tokens=10, features=0), 0.0) == without


@pytest.mark.parametrize(("lengths", "pairs"), [([4], 10), ([1, 3], 7), ([1, 1, 1, 1], 4)])
def test_pairs_are_counted_within_documents(lengths, pairs):
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    assert pairs_of({"position_ids": positions}) == pairs


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"pixel_values": torch.zeros(3, 3, 8, 8)}, (3, 0, 0)),
        ({"pixel_values": torch.zeros(20, 192)}, (0, 20, 0)),
        ({"image_features": torch.zeros(3, 5, 8)}, (0, 0, 15)),
        ({"image_features": torch.zeros(11, 8)}, (0, 0, 11)),
        ({}, (0, 0, 0)),
    ],
)
def test_images_are_counted_in_whatever_form_they_come(images, expected):
    counts = Counts()
    counts.add({"input_ids": torch.zeros(2, 4), "num_tokens": 6, "num_images": 3, **images}, labels=5)
    assert (counts.tiles, counts.patches, counts.features) == expected
    assert (counts.tokens, counts.labels, counts.images) == (6, 5, 3)


def test_the_peak_is_measured_without_a_draw_from_the_common_generator():
    before = torch.get_rng_state()
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(before, torch.get_rng_state())


def test_memory_is_that_of_the_process():
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(2**28, dtype=torch.uint8)
    assert memory_gib(torch.device("cpu")) > 0.02 and memory_gib(torch.device("cpu")) >= before
    del held


def test_only_the_wait_for_training_batches_counts():
    waiting = WaitingForData()
    for name in (FETCH, "[_EvaluationLoop].val_next"):
        with waiting.profile(name):
            time.sleep(0.05)
    assert 0.05 <= waiting.take() < 0.095
    assert waiting.take() == 0.0


class SlowLoader(Callback):
    """Makes each training batch late."""

    def on_train_start(self, trainer, module):
        loader = trainer.datamodule.training
        collate = loader.collate

        def slow(rows):
            time.sleep(0.05)
            return collate(rows)

        loader.collate = slow


def rows_of(run_dir) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["train_loss"]]


def test_a_slow_loader_is_seen_in_the_metrics(tmp_path):
    config = write_text_recipe(tmp_path)
    options = ["--run.max_steps", "4", "--run.accumulate_grad_batches", "8"]
    fit(parse_recipe(["--config", str(config), *options]), callbacks=[SlowLoader()])
    row = rows_of(tmp_path / "run")[-1]
    seconds = 8 * 3 * 32 / float(row["tokens_per_second"])
    assert float(row["data_wait"]) * seconds >= 8 * 0.05
    assert 0 < float(row["mfu"]) < 1 and float(row["memory_gib"]) > 0.02


def test_cached_features_cost_no_operations_of_the_encoder(tmp_path):
    config = write_image_text_recipe(tmp_path)
    needed = {}
    for cache in (str(tmp_path / "features"), "null"):
        run_dir = tmp_path / f"run-{cache == 'null'}"
        options = ["--run_dir", str(run_dir), "--cache_features", cache, "--run.max_steps", "3"]
        fit(parse_recipe(["--config", str(config), *options]))
        row = rows_of(run_dir)[0]
        needed[cache] = float(row["tflop_per_second"]) / float(row["tokens_per_second"])
    cached, encoded = needed.values()
    assert encoded > 1.05 * cached
