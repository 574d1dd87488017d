"""Completes prompts about images in batches. In greedy search on a CPU a row leaves its batch when its answer ends."""

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
    """Stops generation from logits that are not finite. Suppressed tokens are -inf, which is no fault."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Raises CheckpointError for a row whose largest logit is not finite; `amax` propagates NaN."""
        if not scores.amax(-1).isfinite().all():
            raise CheckpointError(NOT_FINITE)
        return scores


def write_greedily(
    model: Any, tokenizer: Any, prompt: dict[str, Tensor], images: dict[str, Tensor], *, max_new_tokens: int
) -> Tensor:
    """Returns the tokens that the model generates after `input_ids`, as (B, new) int64, padded after an answer's end.

    Raises:
        CheckpointError: the model's logits are not finite.
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
    """Tokens that a model generated after a prompt."""

    ids: list[int]
    """All but the end token; padded if a custom `stopping_criteria` ended the row before others of its batch."""
    has_ended: bool
    """True: an end token was generated; False: the length or a stopping criterion cut the answer."""
    nats: list[float] | None
    """Log-probability of each token, then of the end token, under the model's own logits, before any processor.
    None for beam search and for streaming."""


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
    """Generates a continuation of each prompt, in one batch.

    `images` are those of each prompt, as `pack` takes them; an image that several prompts share is encoded once.
    `settings` are keyword arguments of `generate`; an answer ends at its `eos_token_id`, by default the model's.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    device, pad = model.device, tokenizer.pad_token_id
    inputs = {name: tensor.to(device) for name, tensor in pad_left(prompts, pad).items()}
    steps: list[Tensor] = []  # (B,) each
    has_beams = settings.get("num_beams", model.generation_config.num_beams) not in (None, 1)
    if not has_beams and "streamer" not in settings:  # a custom search would not feed the streamer
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
    nats = torch.stack(steps, dim=1).tolist() if steps else None
    continued = []
    for row, ids in enumerate(written):
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        of_row = None if nats is None else nats[row][: None if end is None else end + 1]
        continued.append(Continuation(ids[:end], end is not None, of_row))
    return continued


def _rows_leave(rows: int, model: Any) -> bool:
    """True if rows should leave the batch when they end.

    Not on a GPU: a step of fewer rows takes as long there, and knowing who has ended would mean waiting for the device.
    """
    return rows > 1 and model.generation_config.use_cache is not False and model.device.type == "cpu"


def _remember(
    steps: list[Tensor],
    search: Callable[..., Any],
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    **inputs: Any,
) -> Any:
    """Runs a search of `generate` and appends to `steps` each token's log-probability under the unprocessed logits.

    A logits processor of the caller could not do that: `generate` runs it after its own, which change the distribution.
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
    """Greedy search for `generate` that drops rows from the cache when they end, so that later steps are smaller.

    Processors and stopping criteria still see all rows: a dropped one has padding as tokens and zeros as logits.
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
        if attention_mask is not None:  # absent where no row is padded
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
        stays = goes_on[held]
        # Dropping rows copies the cache, so wait until an eighth of them has ended.
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
    """Generates a text after each prompt, and returns it with its log-probability in nats, the end token included.

    The log-probability is None for beam search.

    Raises:
        As `continue_batch`.
    """
    settings = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
    continued = continue_batch(model, tokenizer, prompts, images, pack, settings=settings)
    texts = tokenizer.batch_decode([one.ids for one in continued], skip_special_tokens=True)
    nats = [None if one.nats is None else sum(one.nats) for one in continued]
    return [(" ".join(text.split()), of_text) for text, of_text in zip(texts, nats, strict=True)]
