"""Lets a model complete prompts about images, batch by batch, greedily. On a CPU a row leaves its batch at its end."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessor

from arlow_vl.errors import CheckpointError
from arlow_vl.evaluation.likelihood import NOT_FINITE, Pack, pad_left, shared_images

Progress = Callable[[int, int], None]


class RefuseNonFinite(LogitsProcessor):
    """Lets nothing be written out of logits that say nothing; suppressed tokens are -inf and no fault."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Raises CheckpointError for a row whose best logit is not finite; NaN is the best of any row that has one."""
        if not scores.amax(-1).isfinite().all():
            raise CheckpointError(NOT_FINITE)
        return scores


def write_greedily(
    model: Any, tokenizer: Any, prompt: dict[str, Tensor], images: dict[str, Tensor], *, max_new_tokens: int
) -> Tensor:
    """(B, new) int64: what the model writes behind `input_ids` until an answer's end.

    Raises:
        CheckpointError: its logits are not finite.
    """
    generated = model.generate(
        **prompt,
        **images,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=[RefuseNonFinite()],
    )
    return generated[:, prompt["input_ids"].shape[1] :]


class Continuation(NamedTuple):
    """What a model wrote behind a prompt."""

    ids: list[int]
    """Without the end. What an own `stopping_criteria` ended is followed by padding where others of its batch go on."""
    has_ended: bool
    """By a token that ends an answer, not for its length."""
    nats: list[float] | None
    """The log-probability of each token under the model, whatever processors made of its logits, that of the end behind
    them; None of beams and of what is streamed."""


@torch.inference_mode()
def continue_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[Any]],
    pack: Pack,
    *,
    settings: Mapping[str, Any],
) -> list[Continuation]:
    """Lets the model go on behind some prompts, together.

    `images` are those of each prompt, as `pack` takes them; an image that several prompts show is encoded once.
    `settings` are keywords of `generate`; an answer ends at its `eos_token_id`, or the model's own.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    device, pad = model.device, tokenizer.pad_token_id
    inputs = {name: tensor.to(device) for name, tensor in pad_left(prompts, pad).items()}
    steps: list[Tensor] = []  # (B,) each
    has_beams = settings.get("num_beams", model.generation_config.num_beams) not in (None, 1)
    if not has_beams and "streamer" not in settings:  # which a search of our own would be left without
        leaves = _rows_leave(len(prompts), model)
        search = partial(_search_greedily, pad_token_id=pad) if leaves else GenerationMixin._sample
        settings = {**settings, "custom_generate": partial(_remember, steps, search)}
    processors = [RefuseNonFinite(), *settings.get("logits_processor", ())]
    generated = model.generate(
        **inputs,
        **shared_images(images, pack, device),
        **{**settings, "pad_token_id": pad, "logits_processor": processors},
    )
    written = generated[:, inputs["input_ids"].shape[1] :].tolist()
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    ends = set(ends) if isinstance(ends, list) else {ends}
    nats = torch.stack(steps, dim=1).double().tolist() if steps else None
    continued = []
    for row, ids in enumerate(written):
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        of_row = None if nats is None else nats[row][: None if end is None else end + 1]
        continued.append(Continuation(ids[:end], end is not None, of_row))
    return continued


def _rows_leave(rows: int, model: Any) -> bool:
    """Not on a GPU, where a step of fewer rows takes as long, and would wait for the device to say who has ended."""
    return rows > 1 and model.generation_config.use_cache is not False and model.device.type == "cpu"


def _remember(
    steps: list[Tensor],
    search: Callable[..., Any],
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    **inputs: Any,
) -> Any:
    """A search in `generate` that keeps in `steps` how likely each token is by the logits that no processor has seen.

    `generate` puts the processors of its caller behind its own, which leave another distribution.
    """

    def process(input_ids: Tensor, logits: Tensor) -> Tensor:
        log_probabilities = logits.float().log_softmax(-1)
        scores = logits_processor(input_ids, logits)
        steps.append(log_probabilities.gather(1, scores.argmax(-1, keepdim=True))[:, 0])
        return scores

    return search(model, input_ids, process, **inputs)


def _search_greedily(
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, Any], Tensor],
    generation_config: Any,
    *,
    pad_token_id: int,
    **inputs: Any,
) -> Tensor:
    """Greedy search in `generate`, whose rows leave the cache at their end: those that go on are fewer.

    Processors and criteria see all rows as ever, a row that has left with padding as its text and zeros as its logits.
    """
    rows, held = len(input_ids), torch.arange(len(input_ids))
    goes_on = torch.ones(rows, dtype=torch.bool)
    cache, attention_mask = inputs["cache"], inputs.get("attention_mask")
    first = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
    logits = model(**first).logits
    while True:
        scores = logits.new_zeros(rows, logits.shape[-1], dtype=torch.float32)
        scores[held] = logits[:, -1].float()
        tokens = logits_processor(input_ids, scores).argmax(-1).where(goes_on, pad_token_id)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        goes_on &= ~stopping_criteria(input_ids, None)
        if not goes_on.any():
            return input_ids
        if attention_mask is not None:  # which rows without padding may do without
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
        stays = goes_on[held]
        # Taking rows out of the cache copies it: not for one of many.
        if isinstance(cache, DynamicCache) and 8 * stays.sum() <= 7 * len(stays):
            kept = stays.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            held = held[kept]
            attention_mask = None if attention_mask is None else attention_mask[kept]
        logits = model(
            input_ids=tokens[held, None], attention_mask=attention_mask, cache=cache, use_cache=True, logits_to_keep=1
        ).logits


def write_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[Any]],
    pack: Pack,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
) -> list[tuple[str, float | None]]:
    """What the model writes behind each prompt, and how likely it was in nats, its end included; None for beams.

    Raises:
        As `continue_batch`.
    """
    settings = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
    continued = continue_batch(model, tokenizer, prompts, images, pack, settings=settings)
    texts = tokenizer.batch_decode([one.ids for one in continued], skip_special_tokens=True)
    nats = [None if one.nats is None else sum(one.nats) for one in continued]
    return [(" ".join(text.split()), of_text) for text, of_text in zip(texts, nats, strict=True)]
