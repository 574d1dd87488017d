"""Arlow in VLMEvalKit. Its models are a table in its code; the starter adds Arlow to it and runs its `run.py`:

    python -m arlow_vl.evaluation.harnesses vlmevalkit VLMEVALKIT/run.py --model arlow_vl --data POPE

with the folder in ARLOW_VL_MODEL; or, in its own `vlmeval/config.py`, `"arlow": partial(ArlowVLM, "FOLDER")`.
"""

from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel  # pyrefly: ignore[missing-import]

from arlow_vl.data.prompts import encode_prompt
from arlow_vl.evaluation.harnesses.requests import Request, answers, open_assistant
from arlow_vl.serving.decoding import Decoding


class ArlowVLM(BaseModel):
    """A vision-language model of this package.

    Args:
        model_path: The model folder.
        device: As torch names it; None: the first accelerator, else the CPU.
        dtype: The weights' type; "auto": as they were saved.
        max_new_tokens: Maximum number of tokens of an answer.
    """

    INTERLEAVE = True

    def __init__(
        self, model_path: str, *, device: str | None = None, dtype: str = "auto", max_new_tokens: int = 128
    ) -> None:
        super().__init__()
        self.assistant = open_assistant(model_path, device=device, dtype=dtype)
        self.decoding = Decoding(max_new_tokens=max_new_tokens)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """Answers texts and images in their order, by the chat template of the model folder.

        Raises:
            ValueError: a part is neither text nor an image, or the prompt leaves no room for an answer.
            ImageError: an image cannot be used.
        """
        name = dataset or "message"
        for part in message:
            if part["type"] not in ("text", "image"):
                raise ValueError(f"{name}: Arlow reads text and images, got {part['type']}; leave the set out")
        content = [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["value"]}
            for part in message
        ]
        images = [part["value"] for part in message if part["type"] == "image"]
        ids = encode_prompt(self.assistant.tokenizer, [{"role": "user", "content": content}])
        (text,) = answers(self.assistant, [(Request(ids, images, name), self.decoding)], batch_size=1)
        return text
