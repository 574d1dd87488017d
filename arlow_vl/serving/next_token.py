"""The next token of one row, by the row's own decoding options and its own draws."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arlow_vl.models.arlow.generation_arlow import WithoutImageTokens
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.drawing import LEAST_TEMPERATURE, token_at


class NextToken:
    """transformers' processors in `generate`'s order, `<image>` forbidden first and last."""

    def __init__(self, decoding: Decoding, prompt_ids: Sequence[int], image_token_id: int | None) -> None:
        self.takes_best = decoding.temperature == 0 and decoding.repetition_penalty == 1
        """True where the token is the best but `<image>`, whatever was read."""
        self._draws = decoding.temperature > 0
        self._generator = torch.Generator()
        if decoding.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(decoding.seed)  # as `drawing.Draw`: a seed writes the same here and there
        self._read: Any = torch.tensor([list(prompt_ids)])
        self._processors = _processors(decoding, image_token_id)

    def choose(self, logits: Tensor) -> int:
        """From the (V,) float32 logits behind what was read and chosen so far."""
        scores = self._processors(self._read.to(logits.device), logits[None])
        if self._draws:
            number = torch.rand(1, generator=self._generator, dtype=torch.float64)
            chosen = token_at(scores.cpu(), number)
        else:
            chosen = scores.argmax(-1, keepdim=True).cpu()
        self._read = torch.cat([self._read, chosen], dim=1)
        return int(chosen)


def _processors(decoding: Decoding, image_token_id: int | None) -> LogitsProcessorList:
    forbid = [] if image_token_id is None else [WithoutImageTokens(image_token_id)]
    chain: list[LogitsProcessor] = [*forbid]
    if decoding.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty)))
    if decoding.temperature > 0:
        chain.append(TemperatureLogitsWarper(float(max(decoding.temperature, LEAST_TEMPERATURE))))
        if decoding.top_k > 0:
            chain.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            chain.append(TopPLogitsWarper(float(decoding.top_p)))
    return LogitsProcessorList([*chain, *forbid])
