"""What the places of image tokens are worth: which of two shapes is to the left of, or above, the other.

Two coloured squares lie on a grid of 6 x 6 patches, and the model, of random weights at first, reads which two colours
are meant and answers whether the first is left, right, above or below of the second. The encoder is frozen and tells
of a patch its colour alone, so that nothing but the projector can say where the patch lies.

Run it with `python -m experiments.encoders.places`; a minute or two a row on one core.
"""

import argparse

import torch
from torch import Tensor

from arlow_vl import ArlowConfig, ArlowVisionConfig, ArlowVLConfig, ArlowVLForConditionalGeneration

COLOURS, SIDE, FEATURES = 6, 6, 64
IMAGE, FIRST_COLOUR, FIRST_ANSWER = 7, 300, 320  # token ids
ANSWERS = 4
BATCH, HELD_OUT = 32, 1000
SEED = 0


def scenes(count: int, seed: int) -> dict[str, Tensor]:
    """Encoder features, and rows of `<image>`, two colours and the answer."""
    dice = torch.Generator().manual_seed(seed)
    palette = torch.randn(COLOURS + 1, FEATURES, generator=torch.Generator().manual_seed(SEED))
    colours = torch.stack([torch.randperm(COLOURS, generator=dice)[:2] for _ in range(count)])
    spots = torch.stack([torch.randperm(SIDE * SIDE, generator=dice)[:2] for _ in range(count)])
    grid = torch.full((count, SIDE * SIDE), COLOURS).scatter(1, spots, colours)
    down, across = (spots[:, 0] // SIDE - spots[:, 1] // SIDE), (spots[:, 0] % SIDE - spots[:, 1] % SIDE)
    is_across = across.abs() > down.abs()
    answers = torch.where(is_across, (across > 0).long(), 2 + (down > 0).long())
    ids = torch.cat([torch.full((count, 1), IMAGE), FIRST_COLOUR + colours, FIRST_ANSWER + answers[:, None]], 1)
    return {"input_ids": ids, "image_features": palette[grid]}


def build(projector: str, scale: float | None) -> ArlowVLForConditionalGeneration:
    """A tiny model, whose places start at `scale`, or are shut off."""
    torch.manual_seed(SEED)
    text = ArlowConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        cross_attention_interval=1,
    )
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=16 * SIDE)
    model = ArlowVLForConditionalGeneration(
        ArlowVLConfig(text_config=text, vision_config=vision, projector=projector, projector_latents=8)
    )
    embedding = model.model.projector.place_embedding
    embedding.scale.data.fill_(scale or 0.0)
    embedding.scale.requires_grad_(scale is not None)
    model.model.vision.requires_grad_(False)
    return model


def accuracy(model: ArlowVLForConditionalGeneration) -> float:
    held_out = scenes(HELD_OUT, SEED + 1)
    with torch.no_grad():
        logits = model(held_out["input_ids"][:, :3], image_features=held_out["image_features"]).logits[:, -1]
    answers = logits[:, FIRST_ANSWER : FIRST_ANSWER + ANSWERS].argmax(-1) + FIRST_ANSWER
    return (answers == held_out["input_ids"][:, 3]).float().mean().item()


def train(model: ArlowVLForConditionalGeneration, steps: int) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        batch = scenes(BATCH, 1000 + step)
        labels = batch["input_ids"].clone()
        labels[:, :3] = -100
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return accuracy(model.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--scales", type=float, nargs="*", default=[0.5], help="where the places' share starts")
    parser.add_argument("--projectors", nargs="*", default=["linear", "mlp", "perceiver"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("projector | places start at | right of the held-out scenes")
    for projector in arguments.projectors:
        for scale in (None, *arguments.scales):
            model = build(projector, scale)
            right = train(model, arguments.steps)
            end = model.model.projector.place_embedding.scale.item()
            start = "none" if scale is None else f"{scale} (ends at {end:.2f})"
            print(f"{projector} | {start} | {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
