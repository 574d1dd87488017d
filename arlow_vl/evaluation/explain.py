"""Where the model looked while it wrote each word: the cross-attention's heat over the picture, drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from arlow_vl.data.prompts import encode_prompt

CELL, GAP, COLUMNS, STRIP = 168, 12, 6, 200
INK, PAPER, FAINT = (24, 24, 28), (250, 250, 248), (120, 120, 126)
HOT = (30, 30, 255)  # rare in photographs
DEEPEST = 0.75  # how much of the picture the hottest place covers


@dataclass(frozen=True)
class WordHeat:
    """One word that the model wrote, and how it spread its attention over the encoder's tokens meanwhile."""

    word: str
    heat: Tensor
    """(encoder tokens,) float32, sums to 1: mean over heads, the chosen layers and the word's tokens."""

    @property
    def peak(self) -> float:
        """How many times the even share the most attended encoder token got."""
        return float(self.heat.max() * self.heat.numel())


@torch.inference_mode()
def explain_completion(
    model: Any, tokenizer: Any, prompt: str, pictures: dict[str, Tensor], *, layers: Sequence[int], max_new_tokens: int
) -> list[WordHeat]:
    """Lets the model complete a prompt about one picture, greedily, and reads the heat of each word.

    `pictures` are the picture inputs of `forward`. Raises ValueError for a layer without a cross-attention block.
    """
    blocks = {i: layer.cross_block for i, layer in enumerate(model.model.language_model.layers) if layer.cross_block}
    for layer in layers:
        if layer not in blocks:
            raise ValueError(f"layer {layer} has no cross-attention block; layers with one: {sorted(blocks)}")
    input_ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    written = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[model.config.image_token_id],  # no picture would stand for it
        **pictures,
    )
    heats: list[Tensor] = []
    hooks = [
        blocks[layer].attn.register_forward_pre_hook(lambda attn, args: heats.append(mean_weights(attn, *args[:2])))
        for layer in layers
    ]
    try:
        model(input_ids=written, **pictures)
    finally:
        for hook in hooks:
            hook.remove()
    # The last run of text reaches to the end; what is read at a token is what the next one is written from.
    count = written.shape[1] - input_ids.shape[1]
    per_token = torch.stack(heats).mean(0)[-count - 1 : -1]
    return words_of(tokenizer, written[0, input_ids.shape[1] :].tolist(), per_token)


def mean_weights(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """(Q, K) float32 attention weights of one picture group, the mean over heads: what the kernels never write out."""
    query = attn.q_norm(attn._heads(attn.q_proj(hidden_states))).flatten(0, -3)
    key = attn.k_norm(attn._heads(attn.k_proj(encoder_hidden_states)))
    key = key.repeat_interleave(attn.num_key_value_groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * attn.scaling
    return scores.softmax(-1).mean(0)


def words_of(tokenizer: Any, ids: Sequence[int], heat: Tensor) -> list[WordHeat]:
    """Joins the tokens of a word; `heat` is (tokens, encoder tokens). Special tokens are left out."""
    groups: list[list[int]] = []
    for place, token in enumerate(ids):
        if token in tokenizer.all_special_ids:
            continue
        starts_word = tokenizer.decode([token])[:1].isspace()
        if starts_word or not groups:
            groups.append([])
        groups[-1].append(place)
    words = [(tokenizer.decode([ids[i] for i in places]).strip(), heat[places].mean(0)) for places in groups]
    return [WordHeat(word, spread) for word, spread in words if word]


def draw_explanation(
    original: Image.Image, seen: Image.Image, words: Sequence[WordHeat], *, grid: tuple[int, int], title: str
) -> Image.Image:
    """A strip of what came and what the encoder saw, and below it the picture once a word, under its heat.

    `seen` is the encoder's input as a picture, `grid` its (rows, columns) of patches.
    """
    rows = math.ceil(len(words) / COLUMNS)
    width = GAP + COLUMNS * (CELL + GAP)
    sheet = Image.new("RGB", (width, STRIP + 4 * GAP + 40 + rows * (CELL + 36 + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=font(15))
    top = GAP + 26
    boxes = [
        (original, f"the picture, {original.width} x {original.height}"),
        (with_grid(seen, grid), f"what the encoder saw, {seen.width} x {seen.height}, {grid[0]} x {grid[1]} patches"),
    ]
    left = GAP
    for picture, label in boxes:
        small = fitted(picture, 2 * STRIP, STRIP)
        sheet.paste(small, (left, top))
        draw.text((left, top + small.height + 2), label, fill=FAINT, font=font(11))
        left += max(small.width, 240) + 2 * GAP
    top += STRIP + 2 * GAP + 6
    for place, word in enumerate(words):
        x, y = GAP + place % COLUMNS * (CELL + GAP), top + place // COLUMNS * (CELL + 36 + GAP)
        sheet.paste(fitted(under_heat(seen, word.heat, grid), CELL, CELL), (x, y))
        draw.text((x, y + CELL + 2), word.word, fill=INK, font=font(14))
        draw.text((x, y + CELL + 19), f"peak {word.peak:.1f} times even", fill=FAINT, font=font(11))
    return sheet


def encoder_view(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """One (3, height, width) encoder input as the picture that it is."""
    channels = pixel_values.cpu().float() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return Image.fromarray((channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def patch_grid(num_patches: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of square patches on an input of that size."""
    rows = round(math.sqrt(num_patches * height / width))
    return rows, num_patches // rows


def under_heat(picture: Image.Image, heat: Tensor, grid: tuple[int, int]) -> Image.Image:
    """The hottest place is covered most; an even spread leaves the picture as it is."""
    rows, columns = grid
    share = heat[: rows * columns].view(rows, columns)
    over_even = (share * heat.numel() - 1).clamp(min=0)
    strength = over_even / over_even.max().clamp(min=1) * DEEPEST
    mask = Image.fromarray((strength * 255).round().byte().numpy())
    return Image.composite(
        Image.new("RGB", picture.size, HOT), picture, mask.resize(picture.size, Image.Resampling.BICUBIC)
    )


def with_grid(picture: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """The borders of the patches, faintly."""
    lined = picture.copy()
    draw = ImageDraw.Draw(lined, "RGBA")
    for row in range(1, grid[0]):
        y = row * picture.height / grid[0]
        draw.line((0, y, picture.width, y), fill=(255, 255, 255, 70))
    for column in range(1, grid[1]):
        x = column * picture.width / grid[1]
        draw.line((x, 0, x, picture.height), fill=(255, 255, 255, 70))
    return lined


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def font(size: int) -> Any:
    return ImageFont.load_default(size)
