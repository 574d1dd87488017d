"""The second road: retrieved captions are not in the prompt, but among what cross-attention reads, beside the image.

A token of a caption becomes a state that says which token it is and which one it follows. So one look finds what
followed, there, the word that was written last; that is copying. The tokens are embedded by the frozen decoder, and
one linear layer projects them. The decoder stays as it is, to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from arlow_vl.data.images import CachedImages
from arlow_vl.data.prompts import IGNORED, encode_messages, encode_prompt, plain_ids
from arlow_vl.data.samples import about_images
from arlow_vl.evaluation.shuffling import shuffle_images
from arlow_vl.progress import ProgressLine
from arlow_vl.training.build import image_text_products
from arlow_vl.training.optimizers import build_optimizer, build_schedule
from arlow_vl.training.recipe import ImageTextRecipe
from arlow_vl.training.stages import apply_policy
from experiments.retrieval.derive import COUNT, Split, shortened
from vision.features import FeatureCache
from vision.projector import UnitLinear

BATCH, GENERATED, NEW_TOKENS = 64, 64, 24
Seen = tuple[str, tuple[str, ...]]
"""Inputs of the model: SHA-256 of an image, and captions of similar ones."""


class CaptionProjector(nn.Module):
    """Tokens of retrieved captions, each with the one before it, to states of the decoder's width."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.fc = UnitLinear(2 * dim, dim)
        self.rank = nn.Embedding(count, dim)
        nn.init.zeros_(self.rank.weight)

    def forward(
        self, before: Float[Tensor, "tokens dim"], tokens: Float[Tensor, "tokens dim"], ranks: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        """`ranks`: 0 for tokens of the nearest image's caption."""
        return self.fc(self.norm(torch.cat([before, tokens], dim=-1))) + self.rank(ranks)


class CaptionReader(nn.Module):
    """A vision-language model that reads captions beside each image."""

    def __init__(self, model: Any, tokenizer: Any, cache: FeatureCache, count: int = COUNT) -> None:
        super().__init__()
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.caption_projector = CaptionProjector(model.config.get_text_config().hidden_size, count)
        _, labels = encode_messages(tokenizer, about_images(1, answer="a"))
        self.end = [label for label in labels if label != IGNORED][-1]
        self.start = encode_prompt(tokenizer, about_images(1, answer="")[:1])[-1]

    def states(self, seen: Sequence[Seen]) -> dict[str, Tensor]:
        """`encoder_hidden_states` (K, D), the tokens of each image and of its captions, and `encoder_lengths`."""
        images = self.model.model.encode_images(**self.cache.get([image for image, _ in seen])).states
        parts, lengths = [], []
        for of_image, (_, captions) in zip(images, seen, strict=True):
            parts.append(of_image)
            if captions:
                parts.append(self._caption_states(captions))
            lengths.append(len(of_image) + (len(parts[-1]) if captions else 0))
        return {"encoder_hidden_states": torch.cat(parts), "encoder_lengths": torch.tensor(lengths)}

    def _caption_states(self, captions: Sequence[str]) -> Float[Tensor, "tokens dim"]:
        tokens = plain_ids(self.tokenizer, list(captions))
        before = torch.tensor([token for ids in tokens for token in (self.start, *ids)])
        own = torch.tensor([token for ids in tokens for token in (*ids, self.end)])
        ranks = torch.tensor([rank for rank, ids in enumerate(tokens) for _ in (*ids, self.end)])
        embed = self.model.get_input_embeddings()
        return self.caption_projector(embed(before), embed(own), ranks)

    def loss(self, seen: Sequence[Seen], captions: Sequence[str]) -> Tensor:
        """Mean loss of the captions' tokens and their ends, in nats."""
        rows = [encode_messages(self.tokenizer, about_images(1, answer=caption)) for caption in captions]
        width = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        inputs = {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows]),
        }
        return self.model(**inputs, **self.states(seen), use_cache=False).loss

    @torch.inference_mode()
    def write(self, seen: Sequence[Seen]) -> list[str]:
        """Captions, greedily."""
        texts: list[str] = []
        for start in range(0, len(seen), GENERATED):
            texts += self._write(seen[start : start + GENERATED])
        return texts

    def _write(self, seen: Sequence[Seen]) -> list[str]:
        """All prompts are one, so rows need no mask."""
        cache, ends = DynamicCache(), torch.tensor(self.model.generation_config.eos_token_id)
        tokens = torch.tensor([encode_prompt(self.tokenizer, about_images(1, answer="")[:1])] * len(seen))
        states, written = self.states(seen), []
        goes_on = torch.ones(len(seen), dtype=torch.bool)
        while goes_on.any() and len(written) < NEW_TOKENS:
            logits = self.model(input_ids=tokens, **states, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            tokens, states = logits.argmax(-1, keepdim=True), {}
            goes_on &= ~torch.isin(tokens[:, 0], ends)
            written.append(tokens[:, 0].where(goes_on, self.tokenizer.pad_token_id))
        texts = self.tokenizer.batch_decode(torch.stack(written, dim=1), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def build_reader(recipe: ImageTextRecipe, tokenizer: Any, cached: CachedImages) -> CaptionReader:
    """The recipe's model before training, with a projector of captions; the same draw for the same seed."""
    torch.manual_seed(recipe.run.seed)
    model, _ = image_text_products(recipe, tokenizer)
    apply_policy(model, recipe.policy)
    return CaptionReader(model, tokenizer, cached.cache)


def train(reader: CaptionReader, recipe: ImageTextRecipe, seen: Sequence[Seen], captions: Sequence[str]) -> list[float]:
    """As `arlow fit` trains by this recipe: rates, clipping, batches. Returns the loss of each step."""
    optimizer = build_optimizer(reader, recipe.optim)
    schedule = build_schedule(optimizer, recipe.optim, recipe.run.max_steps)
    parameters = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    progress, losses = ProgressLine("captions among the encoder's states", "steps"), []
    batches = shuffled_batches(len(seen), BATCH, recipe.run.seed)
    for step in range(recipe.run.max_steps):
        rows = next(batches)
        loss = reader.loss([seen[row] for row in rows], [captions[row] for row in rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.optim.grad_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(step + 1, recipe.run.max_steps)
    return losses


def shuffled_batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Numbers below `count`, epoch after epoch in another order, so many at once."""
    dice, waiting = np.random.default_rng(seed), []
    while True:
        while len(waiting) < size:
            waiting += dice.permutation(count).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


def seen_by(split: Split, given: Mapping[str, Sequence[str]]) -> list[Seen]:
    """Each image with the captions that it was given, by key."""
    return [
        (image.sha256, tuple(map(shortened, given[key]))) for key, image in zip(split.keys, split.images, strict=True)
    ]


def controls(seen: Sequence[Seen], captions: Sequence[str]) -> dict[str, list[Seen]]:
    """By what is added to its name, what the model and its controls see."""
    others = shuffle_images([str(place) for place in range(len(seen))], captions)
    pairs = list(zip(seen, others, strict=True))
    return {
        "": list(seen),
        ", another image": [(seen[other][0], own[1]) for own, other in pairs],
        ", another's captions": [(own[0], seen[other][1]) for own, other in pairs],
        ", no captions": [(image, ()) for image, _ in seen],
    }
