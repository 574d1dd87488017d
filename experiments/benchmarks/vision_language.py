"""Arlow's vision-language model against Mllama's and LLaVA's of transformers: whole models, in turn.

Run it with `python -m experiments.benchmarks.vision_language`. All three read the same frozen encoder, the 196 patches
of a small ViT with random weights. Mllama has as many layers more as it has cross-attention ones, and Arlow the linear
projector that Mllama has: so both hold the same self-attention layers and gated blocks. About 25 million parameters in
the decoder, float32, two threads; some eight minutes on a quiet machine.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from arlow_vl import ArlowConfig, ArlowVisionConfig, ArlowVLConfig, ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.layout_arlow_vl import layout_of
from experiments.benchmarks.decoder import GOAL_OF_TRAINING, SHAPE, TOY_SHAPE, adamw_step
from experiments.benchmarks.measure import alternate, machine_line, report, speed_row, table
from vision.encoder import VisionEncoder

ENCODER = {"timm_name": "vit_tiny_patch16_224", "image_size": 224}
TOY_ENCODER = {"timm_name": "test_vit", "image_size": 32}
INTERVAL = 4
IMAGE = 5
"""The id of `<image>` in all three."""
TEXT_TOKENS = 64  # of each image, the <image> token among them
BATCH = {1: 4, 8: 1}  # rows of a training step, by images a row
NEW_TOKENS = 64
PEERS = ("Mllama", "LLaVA")
GOALS = {
    "train, 1 image a row": GOAL_OF_TRAINING,
    "train, 8 images a row": 2.0,
    "decode, batch 1": 1.3,
    "decode, batch 4": 1.15,
    "decode, batch 8": 1.15,
}


class TowerOfMllama(nn.Module):
    """The shared encoder where Mllama looks for its own: (B, images, tiles, 3, height, width) pixels."""

    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.encoder, self.num_patches = encoder, encoder.num_patches

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutput:
        features = self.encoder(pixel_values.flatten(0, 2))
        return BaseModelOutput(last_hidden_state=features.unflatten(0, pixel_values.shape[:3]))


class TowerOfLlava(nn.Module):
    """The shared encoder where LLaVA looks for its own: (images, 3, height, width) pixels."""

    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        features = self.encoder(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))


def build(shape: dict, encoder: dict) -> dict[str, PreTrainedModel]:
    """Three models around one frozen encoder."""
    arlow = build_arlow(shape, encoder)
    shared = arlow.model.vision
    mllama = build_mllama(shape, arlow.config.text_config, shared)
    models = {"Arlow": arlow, "Mllama": mllama, "LLaVA": build_llava(shape, shared)}
    for name, parameter in ((n, p) for model in models.values() for n, p in model.named_parameters()):
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
    return models


def build_arlow(shape: dict, encoder: dict, *, image: int = IMAGE) -> ArlowVLForConditionalGeneration:
    """Its encoder is frozen; `image` is the id of `<image>`."""
    text = ArlowConfig(**shape, cross_attention_interval=INTERVAL, image_token_id=image)
    vision = ArlowVisionConfig(**encoder)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=text, vision_config=vision, projector="linear"))
    model.model.vision.requires_grad_(False).eval()
    return model


def build_mllama(shape: dict, arlow: ArlowConfig, encoder: VisionEncoder) -> MllamaForConditionalGeneration:
    """Its cross-attention layers stand where Arlow's blocks stand, in front of the same self-attention layers."""
    in_front_of = arlow.cross_attention_layers
    sizes = {key: value for key, value in shape.items() if key != "head_dim"}
    sizes["num_hidden_layers"] += len(in_front_of)
    text = MllamaTextConfig(
        **sizes,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        cross_attention_layers=[layer + number for number, layer in enumerate(in_front_of)],
    )
    unused = MllamaVisionConfig(
        hidden_size=8, num_hidden_layers=1, num_global_layers=1, attention_heads=1, intermediate_size=8,
        vision_output_dim=encoder.embed_dim, image_size=28, intermediate_layers_indices=[0],
    )  # fmt: skip
    model = MllamaForConditionalGeneration(
        MllamaConfig.from_dict(
            {"vision_config": unused, "text_config": text, "image_token_index": IMAGE, "tie_word_embeddings": True}
        )
    )
    model.model.vision_model = TowerOfMllama(encoder)
    model.model.multi_modal_projector = nn.Linear(encoder.embed_dim, shape["hidden_size"])
    model.tie_weights()
    return model


def build_llava(shape: dict, encoder: VisionEncoder) -> LlavaForConditionalGeneration:
    unused = CLIPVisionConfig(
        hidden_size=encoder.embed_dim, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=unused,
            text_config=LlamaConfig(**shape),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=True,
        )
    )
    model.model.vision_tower = TowerOfLlava(encoder)
    model.tie_weights()
    return model


def inputs_of(models: dict[str, PreTrainedModel], batch: int, images: int) -> dict[str, dict[str, Tensor]]:
    """The same rows for each model: every image in front of its own text, which reads that image alone."""
    encoder = models["Arlow"].model.vision
    pixels = torch.randn(batch * images, 3, *encoder.image_size)
    ids = torch.randint(10, models["Arlow"].config.text_config.vocab_size, (batch, images, TEXT_TOKENS))
    ids[:, :, 0] = IMAGE
    unrolled = torch.cat([ids[:, :, :1].expand(-1, -1, encoder.num_patches), ids[:, :, 1:]], dim=-1)
    reads = torch.eye(images, dtype=torch.long).repeat_interleave(TEXT_TOKENS, dim=0)  # (T, images)
    flat = {"input_ids": ids.flatten(1), "attention_mask": torch.ones_like(ids.flatten(1))}
    tiled = pixels.view(batch, images, 1, *pixels.shape[1:])
    return {
        "Arlow": flat | {"pixel_values": pixels},
        "Mllama": flat
        | {
            "pixel_values": tiled,
            "aspect_ratio_ids": torch.ones(batch, images, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(batch, images, 1, dtype=torch.long),
            "cross_attention_mask": reads[None, :, :, None].expand(batch, -1, -1, -1),
        },
        "LLaVA": {
            "input_ids": unrolled.flatten(1),
            "attention_mask": torch.ones_like(unrolled.flatten(1)),
            "pixel_values": pixels,
        },
    }


def placed(inputs: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Inputs where the model is, numbers in its dtype."""
    return {name: x.to(model.device, model.dtype if x.is_floating_point() else None) for name, x in inputs.items()}


def as_loaded(inputs: dict[str, Tensor], model: Any) -> dict[str, Any]:
    """Inputs of an Arlow as the loader of `arlow fit` gives them: with positions and the layout, made on the CPU."""
    inputs = {name: x for name, x in inputs.items() if name != "attention_mask"}  # of rows that have no padding
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    layout = layout_of(model.config, model.model.vision, inputs)
    return placed(inputs, model) | {"layout": layout.to(model.device)}


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)


def training(models: dict[str, PreTrainedModel], images: int, batch: int | None = None) -> dict[str, Callable]:
    """Steps over `batch` rows, without it those of BATCH."""
    inputs = inputs_of(models, batch or BATCH[images], images)
    steps = {}
    for name, model in models.items():
        of_step = (as_loaded if name == "Arlow" else placed)(inputs[name], model)
        step = adamw_step(model, of_step | {"labels": labels_of(of_step), "use_cache": False})
        steps[name] = step
        if name == "Arlow":
            steps["Arlow, skip_logits"] = partial(step, skip_logits=True)
    return steps


def by_source(models: dict[str, PreTrainedModel], images: int, batch: int) -> dict[str, Callable]:
    """Arlow's step over the same rows: images through the frozen encoder, their features out of a cache, no images."""
    arlow: Any = models["Arlow"]
    inputs = inputs_of(models, batch, images)["Arlow"]
    labels = labels_of(inputs).to(arlow.device)
    with torch.no_grad():
        features = arlow.model.vision(placed(inputs, arlow)["pixel_values"]).cpu()
    text = {key: value for key, value in inputs.items() if key != "pixel_values"}
    words = text | {"input_ids": text["input_ids"].masked_fill(text["input_ids"] == IMAGE, IMAGE + 1)}
    kinds = {
        "encoder in the step": inputs,
        "cached features": text | {"image_features": features},
        "text only": words,
    }
    return {
        name: partial(
            adamw_step(arlow, as_loaded(one, arlow) | {"labels": labels, "use_cache": False}), skip_logits=True
        )
        for name, one in kinds.items()
    }


def operations(models: dict[str, PreTrainedModel], images: int) -> list[object]:
    """Floating-point operations of a training step's products: the peers' over Arlow's is what arithmetic allows."""
    inputs, counted = inputs_of(models, BATCH[images], images), {}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            model.train()(**inputs[name], labels=labels_of(inputs[name]), use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)
        counted[name] = counter.get_total_flops() / 1e9
    over = [f"{counted[peer] / counted['Arlow']:.2f}" for peer in PEERS]
    return [f"train, {images} image{'s' * (images > 1)} a row", f"{counted['Arlow']:,.1f}", *over]


def decoding(models: dict[str, PreTrainedModel], batch: int, tokens: int) -> dict[str, Callable[[], None]]:
    """Greedy decoding behind one image a row, prefill and encoder included."""
    inputs = inputs_of(models, batch, 1)

    def decode(model: Any, inputs: dict[str, Tensor]) -> None:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        model.eval().generate(**inputs, do_sample=False, **length)

    return {name: partial(decode, model, inputs[name]) for name, model in models.items()}


def plan(models: dict[str, PreTrainedModel], tokens: int) -> Iterator[tuple[str, dict, int, str]]:
    """Measure, cases, units of one call, their name."""
    yield "train, 1 image a row", training(models, 1), BATCH[1], "images/s"
    yield "train, 8 images a row", training(models, 8), 8 * BATCH[8], "images/s"
    for batch in (1, 4, 8):
        yield f"decode, batch {batch}", decoding(models, batch, tokens), batch * tokens, "tokens/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="sizes of a test: figures say nothing and are not kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.toy else 2)
    torch.manual_seed(0)
    models = build(TOY_SHAPE, TOY_ENCODER) if arguments.toy else build(SHAPE, ENCODER)
    counts = [operations(models, images) for images in BATCH]
    figures, lines = {}, []
    for name, cases, units, unit in plan(models, tokens=4 if arguments.toy else NEW_TOKENS):
        figures[name], rows = speed_row(name, alternate(cases, arguments.rounds), units, unit, PEERS, GOALS[name])
        lines += rows
        print(*map(" | ".join, rows), sep="\n", flush=True)
    header = ["measure", "unit", "Arlow", *PEERS, "Arlow over the faster peer", "goal"]
    counted = table(["measure", "Arlow, GFLOP", *(f"{peer} over Arlow" for peer in PEERS)], counts)
    text = (
        f"# Vision and language\n\n{machine_line()}\n\n{table(header, lines)}\n\n## Operations of a step\n\n{counted}"
    )
    report(None if arguments.toy else "vision_language", text, {"speed": figures})


if __name__ == "__main__":
    main()
