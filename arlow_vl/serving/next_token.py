"""Choice of the next token of one row, by the model's settings, the row's decoding options and its own sampling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.generation_arlow import WithoutImageTokens
from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.drawing import LEAST_TEMPERATURE, token_at


class NextToken:
    """Chooses the tokens of one row: applies `processors`, as `processors_of` returns them, then samples."""

    def __init__(self, decoding: Decoding, prompt_ids: Sequence[int], processors: Sequence[LogitsProcessor]) -> None:
        only_forbid_images = all(isinstance(processor, WithoutImageTokens) for processor in processors)
        self.takes_best = decoding.temperature == 0 and only_forbid_images
        """True if the choice is always the likeliest token but `<image>`, whatever was read."""
        self._draws = decoding.temperature > 0
        self._generator = torch.Generator()
        if decoding.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(
                decoding.seed
            )  # as in `drawing.Draw`, so that a seed gives the same answer in both
        self._read: Any = torch.tensor([list(prompt_ids)])
        self._processors = LogitsProcessorList([*processors, *_warpers(decoding)])

    def choose(self, logits: Tensor) -> int:
        """Returns the next token, given the (V,) float32 logits after what was read and chosen so far."""
        scores = self._processors(self._read.to(logits.device), logits[None])
        if self._draws:
            number = torch.rand(1, generator=self._generator, dtype=torch.float64)
            chosen = token_at(scores.cpu(), number)
        else:
            chosen = scores.argmax(-1, keepdim=True).cpu()
        self._read = torch.cat([self._read, chosen], dim=1)
        return int(chosen)


def processors_of(
    assistant: Assistant, decoding: Decoding, prompt_length: int, device: torch.device
) -> LogitsProcessorList:
    """Returns the logits processors that `generate` uses for the commands: those of the model folder's generation
    config, overridden by `decoding`, with `<image>` masked first and last."""
    model = assistant.model
    settings = decoding.search_settings() | {"eos_token_id": sorted(assistant.stop_ids)}
    config, _ = model._prepare_generation_config(None, **settings, pad_token_id=assistant.tokenizer.pad_token_id)
    config.max_length = prompt_length + decoding.max_new_tokens
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=device)
    return model._get_logits_processor(config, prompt_length, device=device)


def refuse_unhonoured(settings: GenerationConfig) -> None:
    """Raises CheckpointError for settings of a generation config that the rows of a batch cannot honour."""
    for name, plain in (("guidance_scale", 1), ("max_time", None), ("stop_strings", None)):
        value = getattr(settings, name, None)
        if value not in (None, plain):
            raise CheckpointError(
                f"generation_config.json sets {name} to {value!r:.60}, which answers that are written together do not "
                "honour; take it out of the file to serve the model"
            )


def _warpers(decoding: Decoding) -> list[LogitsProcessor]:
    if decoding.temperature == 0:
        return []
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(max(decoding.temperature, LEAST_TEMPERATURE))]
    if decoding.top_k > 0:
        warpers.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    return warpers
