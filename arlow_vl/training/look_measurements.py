"""Measurements of a look: generated texts, the loss with exchanged images, and the attention to each image."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from arlow_vl.data.sample_dataset import EncodedSample, EncodedText, PlacedImage
from arlow_vl.evaluation.explain import mean_weights
from arlow_vl.evaluation.generation import write_greedily
from arlow_vl.evaluation.likelihood import pad_left
from arlow_vl.evaluation.shuffling import shuffle_images
from arlow_vl.training.compiling import as_written

NEW_TOKENS = 32
"""Limit of tokens that the model writes for a sample, and of its reference."""
PROMPT_TOKENS = 64
"""Limit of tokens of the prompt where a text has none of its own and is cut in the middle."""

Collate = Callable[[list[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Chosen:
    """Validation sample that every look uses."""

    key: str
    item: EncodedSample
    prompt: list[int]
    reference: list[int]
    placed: list[PlacedImage] = field(default_factory=list)
    """Its images, not yet read."""


def prompt_and_reference(text: EncodedText) -> tuple[list[int], list[int]]:
    """Splits a text before its last answer, or in the middle if all of it is learnt.

    >>> prompt_and_reference(EncodedText([1, 5, 6, 7], [-100, -100, 6, 7]))
    ([1, 5], [6, 7])
    """
    ids, labels = text
    last = max((place for place, label in enumerate(labels) if label >= 0), default=len(ids) - 1)
    start = last
    while start > 0 and labels[start - 1] >= 0:
        start -= 1
    if start <= 1:
        start = max(1, min(len(ids) // 2, PROMPT_TOKENS))
        last = len(ids) - 1
    return list(ids[:start]), list(ids[start : min(last + 1, start + NEW_TOKENS)])


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode, uncompiled and without gradients; afterwards every module has its mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), as_written():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def write_texts(model: Any, tokenizer: Any, chosen: Sequence[Chosen], collate: Collate) -> list[str]:
    """Returns the text that the model generates after each prompt.

    Raises:
        CheckpointError: the logits are not finite.
    """
    device, config = next(model.parameters()).device, model.config.get_text_config()
    prompt = pad_left([sample.prompt for sample in chosen], tokenizer.pad_token_id)
    room = config.max_position_embeddings - prompt["input_ids"].shape[1]
    # A text may have more images after its prompt: in later turns, or later in a document.
    shown = [sample.item.images[: sample.prompt.count(config.image_token_id)] for sample in chosen]
    prepared = [image for images in shown for image in images]
    inputs = prompt | (collate.images.pack(prepared) if prepared else {})  # pyrefly: ignore[missing-attribute]
    inputs = {name: value.to(device) for name, value in inputs.items()}
    texts = {name: inputs.pop(name) for name in prompt}
    written = write_greedily(model, tokenizer, texts, inputs, max_new_tokens=max(1, min(NEW_TOKENS, room)))
    return [plain_text(tokenizer, ids) for ids in written.tolist()]


def plain_text(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())


def losses_with_exchanged_images(
    loss: Callable[[dict[str, Any]], Tensor], chosen: Sequence[Chosen], collate: Collate
) -> tuple[float, float] | None:
    """Returns the loss of the samples with their own images and with exchanged ones; None if none can be exchanged.

    Only samples with the same number of images can exchange them, so those with the commonest number are used.
    """
    counts = [len(sample.item.images) for sample in chosen if sample.item.images]
    count = max(counts, key=counts.count, default=0)
    items = [sample for sample in chosen if count and len(sample.item.images) == count]
    names = [" ".join(image.sha256 for image in sample.placed) or sample.key for sample in items]
    if len(set(names)) < 2:
        return None
    order = shuffle_images(names, [str(sample.reference) for sample in items])
    exchanged = [EncodedSample(items[i].item.texts, items[other].item.images) for i, other in enumerate(order)]
    own, other = (loss(collate(some)).item() for some in ([sample.item for sample in items], exchanged))
    return own, other


def attention_shares(model: Any, loss: Callable[[Any], Tensor], sample: Chosen, collate: Collate) -> list[float] | None:
    """Returns each image's share of the cross-attention of a text, mean over tokens and blocks; they sum to 1.

    None for fewer than two images, or images that are not adjacent: then a token attends to the last ones before it
    alone.
    """
    images = len(sample.item.images)
    image_id = model.config.get_text_config().image_token_id
    places = [place for place, token in enumerate(sample.item.texts[0].ids) if token == image_id]
    if images < 2 or len(places) != images or places[-1] - places[0] != images - 1:
        return None
    heats: list[Tensor] = []
    lengths: list[int] = []
    blocks = [layer.cross_block for layer in model.model.language_model.layers if layer.cross_block is not None]
    hooks = [
        block.attn.register_forward_pre_hook(lambda attn, args: heats.append(mean_weights(attn, *args[:2]).mean(0)))
        for block in blocks
    ]
    hooks.append(model.model.register_forward_hook(lambda _, args, out: lengths.extend(_image_lengths(out))))
    try:
        loss(collate([sample.item]))
    finally:
        for hook in hooks:
            hook.remove()
    shares = torch.stack(heats).mean(0).split(lengths)
    return [share.sum().item() for share in shares]


def _image_lengths(outputs: Any) -> list[int]:
    return [len(states) for states in outputs.image_outputs.pooler_output]
