"""An open model and its prompts, made of conversations, texts and images; `writing` generates the answers.

An image is prepared by `vision.forms.batches.prepare_image`, a conversation is rendered by the chat template of the
model folder, so that a served model reads what training and evaluation read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from arlow_vl.data.prompts import encode_prompt, plain_ids, stop_token_ids
from arlow_vl.data.samples import Message
from arlow_vl.models.open_model import OpenModel, open_model
from arlow_vl.printing import number_of
from vision.decoding.image import DEFAULT_LIMITS, ImageLimits
from vision.decoding.sources import path_if_there
from vision.forms.batches import pack_images, prepare_image


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as the encoder takes it. The same object in several prompts is encoded once per batch."""

    pixels: Any
    """A tensor or tiles, as `prepare_image` gives them."""
    name: str


@dataclass(frozen=True)
class Prompt:
    """The token ids and images that the model reads before it writes."""

    ids: tuple[int, ...]
    images: tuple[PreparedImage, ...] = ()
    """One for each `<image>` in `ids`, in their order."""


class Assistant:
    """An open text or vision-language model with its tokenizer and, if it has one, its processor."""

    def __init__(self, opened: OpenModel) -> None:
        self.model, self.tokenizer, self.processor = opened.model, opened.tokenizer, opened.processor

    @classmethod
    def open(cls, folder: Path, *, device: str = "auto", precision: str | None = None) -> "Assistant":
        """Opens a model folder. Raises CheckpointError (see `open_model`)."""
        return cls(open_model(folder, device=device, precision=precision))

    @property
    def sees_images(self) -> bool:
        return self.processor is not None

    @property
    def max_length(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self.model.config.get_text_config().max_position_embeddings

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer: those of the model folder's generation config, and of its chat template."""
        ends = self.model.generation_config.eos_token_id
        configured = ends if isinstance(ends, list) else [ends]
        try:
            of_template = stop_token_ids(self.tokenizer)
        except ValueError:  # a template that training refuses may still render prompts
            of_template = [self.tokenizer.eos_token_id]
        return frozenset(end for end in (*configured, *of_template) if end is not None)

    def image(self, source: Any, *, name: str = "image", limits: ImageLimits = DEFAULT_LIMITS) -> PreparedImage:
        """Reads and prepares an image in any form that `read_image` takes.

        Raises:
            ImageError: the image cannot be read; the message names it.
            ValueError: the model is a text model.
        """
        if not self.sees_images:
            raise ValueError("this is a text model and sees no images; name the hf/ folder of a vision run")
        transform = self.processor.image_processor.transform
        source = path_if_there(source) if isinstance(source, str) else source
        return PreparedImage(prepare_image(transform, source, name=name, limits=limits), name)

    def pack(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """Returns the model's image inputs for a batch of images."""
        return pack_images(self.processor.image_processor.transform, [image.pixels for image in images])

    def chat(self, messages: Sequence[Message], images: Sequence[PreparedImage] = ()) -> Prompt:
        """Returns the prompt of a conversation to be answered; `images` are those of its image parts, in order.

        Raises:
            ValueError: the number of images differs from that of the image parts, or the prompt leaves no room for an
                answer.
        """
        contents = [message["content"] for message in messages if isinstance(message["content"], list)]
        places = sum(part["type"] == "image" for content in contents for part in content)
        if places != len(images):
            raise ValueError(f"the messages have places for {number_of(places, 'image')}, and {len(images)} came")
        return self._checked(encode_prompt(self.tokenizer, messages), images)

    def text(self, text: str) -> Prompt:
        """Returns the prompt of a text to be continued.

        It begins as `tokenizer(text)` does, an empty one as documents do; no part of the text is a control token.

        Raises:
            ValueError: the text leaves no room for a continuation.
        """
        ids = [*self.text_prefix, *plain_ids(self.tokenizer, [text])[0]]
        if not ids:
            ends = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            ids = [token for token in ends if token is not None][:1]
        return self._checked(ids, ())

    @cached_property
    def text_prefix(self) -> list[int]:
        """The tokens that the tokenizer puts in front of a text: bos, or none."""
        ids = self.tokenizer("a")["input_ids"]
        return ids[: ids.index(plain_ids(self.tokenizer, ["a"])[0][0])]

    def _checked(self, ids: list[int], images: Sequence[PreparedImage]) -> Prompt:
        if not ids:
            raise ValueError("the prompt is empty and the tokenizer has no token to begin with; give some text")
        if len(ids) >= self.max_length:
            raise ValueError(
                f"the prompt has {len(ids):,} tokens, the model reads {self.max_length:,} with its answer; shorten it"
            )
        return Prompt(tuple(ids), tuple(images))
