"""What a look reads of a model: texts that it writes, what exchanged images cost it, where its attention goes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from arlow_vl.data.sample_dataset import EncodedSample, EncodedText, PlacedImage
from arlow_vl.evaluation.controls import shuffle_images
from arlow_vl.evaluation.explain import mean_weights
from arlow_vl.evaluation.generation import write_greedily
from arlow_vl.evaluation.likelihood import pad_left
from arlow_vl.training.compiling import as_written

NEW_TOKENS = 32
"""Most tokens that the model writes of each sample, and that the data say there."""
PROMPT_TOKENS = 64
"""Most tokens of a text that the model goes on with."""

Collate = Callable[[list[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Chosen:
    """A validation sample that each look is taken at."""

    key: str
    item: EncodedSample
    prompt: list[int]
    reference: list[int]
    placed: list[PlacedImage] = field(default_factory=list)
    """Its images, where they lie."""


def prompt_and_reference(text: EncodedText) -> tuple[list[int], list[int]]:
    """Parts a text in front of its last answer; a text that is all learnt, in the middle.

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
    """Every part in eval mode, uncompiled and without gradients; afterwards each has the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), as_written():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def write_texts(model: Any, tokenizer: Any, chosen: Sequence[Chosen], collate: Collate) -> list[str]:
    """What the model writes after each prompt, as text.

    Raises:
        CheckpointError: its logits are not finite.
    """
    device, config = next(model.parameters()).device, model.config.get_text_config()
    prompt = pad_left([sample.prompt for sample in chosen], tokenizer.pad_token_id)
    room = config.max_position_embeddings - prompt["input_ids"].shape[1]
    # A text may show more images behind its prompt: in a turn whose answer is cut, further on in a document.
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
    """The loss of the samples, and that with the images of each other; None where there is nothing to exchange.

    Only samples of the same number of images can lend each other theirs, so those of the commonest number are taken.
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
    """How the cross-attention of a text spreads over its images, mean over its tokens and all blocks; sums to 1.

    None where there are fewer than two images, or where they do not stand beside each other: then a token reads the
    last ones before it, and nothing is shared out.
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
