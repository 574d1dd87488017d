"""Sampling with random numbers per prompt, not per batch: a seed gives the same answer in any batch."""

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from arlow_vl.serving.decoding import Decoding

LEAST_TEMPERATURE = 1e-4  # a lower one samples the same tokens, and float32 could not divide by it


class Draw(LogitsProcessor):
    """Samples the next token of every row and masks all others, so that greedy search takes it.

    Step k of every row uses the k-th random number of the seed, by inversion of the cumulative distribution. Without a
    seed each row has numbers of its own, those of `dice`, or where that is None, of the operating system's seed.
    """

    def __init__(self, decoding: Decoding, dice: torch.Generator | None = None) -> None:
        self.has_seed = decoding.seed is not None
        if decoding.seed is not None:
            self.dice = torch.Generator().manual_seed(decoding.seed)
        elif dice is not None:
            self.dice = dice
        else:
            self.dice = torch.Generator()
            self.dice.seed()
        self.warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(max(decoding.temperature, LEAST_TEMPERATURE))]
        if decoding.top_k:
            self.warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        warped = scores
        for warper in self.warpers:
            warped = warper(input_ids, warped)
        numbers = torch.rand(1 if self.has_seed else len(scores), generator=self.dice, dtype=torch.float64)
        chosen = token_at(warped, numbers.expand(len(scores)))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, scores.gather(1, chosen))


def token_at(scores: Tensor, numbers: Tensor) -> Tensor:
    """(B, 1) int64: for each row of (B, V) scores, the token at which the cumulative probability passes its number."""
    device = scores.device
    if device.type == "mps":  # it has no float64
        scores = scores.cpu()
    below = scores.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(below, numbers.to(below)[:, None] * below[:, -1:], right=True).to(device)
