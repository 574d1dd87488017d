"""What a model writes behind one conversation, greedily: what batches and drawings are compared with."""

from typing import Any

import torch

from arlow_vl.data.prompts import encode_prompt
from arlow_vl.data.samples import Message
from arlow_vl.evaluation.generation import write_greedily
from arlow_vl.evaluation.likelihood import pad_left


@torch.inference_mode()
def complete_prompt(
    model: Any, tokenizer: Any, prompt: list[Message], images: dict[str, torch.Tensor], *, max_new_tokens: int
) -> str:
    """Without special tokens and surrounding space."""
    batch = pad_left([encode_prompt(tokenizer, prompt)], tokenizer.pad_token_id)
    written = write_greedily(model, tokenizer, batch, images, max_new_tokens=max_new_tokens)
    return " ".join(tokenizer.decode(written[0], skip_special_tokens=True).split())
