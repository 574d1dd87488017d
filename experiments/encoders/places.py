"""Value of the positions of image tokens: which of two squares is left of, or above, the other.

Four coloured squares lie on a grid of 6 x 6 patches. A row names each pair of colours and answers whether the first is
left, right, above or below of the second. Features are made here instead of by an encoder: they tell of a patch its
colour alone, so that nothing but the projector can say where it lies. The model is tiny and starts from random weights,
its gates half open.

Run it with `python -m experiments.encoders.places`; some minutes a line on one core.
"""

import argparse
import itertools

import torch
from torch import Tensor

from arlow_vl import ArlowConfig, ArlowVisionConfig, ArlowVLConfig, ArlowVLForConditionalGeneration

COLOURS, SIDE, FEATURES = 6, 6, 64
SQUARES = 4
PAIRS = list(itertools.combinations(range(SQUARES), 2))
IMAGE, FIRST_COLOUR, FIRST_ANSWER = 7, 300, 320  # token ids
ANSWERS = 4
BATCH, HELD_OUT = 32, 500
SEED = 0


def scenes(count: int, seed: int) -> dict[str, Tensor]:
    """Features of patches, and rows of `<image>` and, for each pair, two colours and the answer; labels are answers."""
    dice = torch.Generator().manual_seed(seed)
    palette = torch.randn(COLOURS + 1, FEATURES, generator=torch.Generator().manual_seed(SEED))
    colours = torch.stack([torch.randperm(COLOURS, generator=dice)[:SQUARES] for _ in range(count)])
    spots = torch.stack([torch.randperm(SIDE * SIDE, generator=dice)[:SQUARES] for _ in range(count)])
    grid = torch.full((count, SIDE * SIDE), COLOURS).scatter(1, spots, colours)
    first, second = torch.tensor(PAIRS).T
    down, across = spots[:, first] // SIDE - spots[:, second] // SIDE, spots[:, first] % SIDE - spots[:, second] % SIDE
    answers = torch.where(across.abs() > down.abs(), (across > 0).long(), 2 + (down > 0).long())
    triples = torch.stack(
        [FIRST_COLOUR + colours[:, first], FIRST_COLOUR + colours[:, second], FIRST_ANSWER + answers], dim=-1
    )
    ids = torch.cat([torch.full((count, 1), IMAGE), triples.flatten(1)], dim=1)
    is_answer = ids >= FIRST_ANSWER
    return {"input_ids": ids, "image_features": palette[grid], "labels": ids.where(is_answer, -100)}


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
    for layer in model.model.language_model.layers:
        torch.nn.init.constant_(layer.cross_block.attn_gate, 0.5)
    return model


@torch.no_grad()
def accuracy(model: ArlowVLForConditionalGeneration) -> float:
    held_out = scenes(HELD_OUT, SEED + 1)
    logits, labels = model(**held_out).logits[:, :-1], held_out["labels"][:, 1:]
    answers = logits[..., FIRST_ANSWER : FIRST_ANSWER + ANSWERS].argmax(-1) + FIRST_ANSWER
    return (answers == labels)[labels != -100].float().mean().item()


def train(model: ArlowVLForConditionalGeneration, steps: int) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        model(**scenes(BATCH, 1000 + step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return accuracy(model.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
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
