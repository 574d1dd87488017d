# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The processor: text with `<image>` in it, and images, become inputs of `ArlowVLForConditionalGeneration`."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    ChatTokenizer,
    drop_quotes,
    plain_chat,
    with_fixed_day,
)
from arlow_vl.models.arlow_vl.configuration_arlow_vl import NEEDS_PACKAGE, ArlowVLConfig, NeedsPackage
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor, flat_images
from arlow_vl.printing import number_of
from vision.transform import ImageTransform, transform_difference


class ArlowProcessor(NeedsPackage, ProcessorMixin):
    """Text and images for the model: `input_ids`, `attention_mask` and `pixel_values`.

    The text holds one `<image>` for each image. Images are one list for all rows, or a list for each row. Without
    text each image, or each list of images, becomes a row of its own `<image>`s. Rows are padded on the left, so that
    `generate` continues where their texts end; a training collator may ask for `padding_side="right"`.

    A chat goes through `apply_chat_template`, where only an image part is an image (docs/prompts.md).
    """

    def __init__(
        self,
        image_processor: ArlowImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        self.image_token = IMAGE_TOKEN
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no {IMAGE_TOKEN}; train one with `arlow tokenizer train`")
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if not isinstance(tokenizer, ChatTokenizer):
            drop_quotes(tokenizer.backend_tokenizer)
        tokenizer.padding_side = "left"  # many text models' folders ask for the right, as training does
        # One template, whether a chat comes to the processor or to its tokenizer.
        chat_template = tokenizer.chat_template = chat_template or tokenizer.chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> "ArlowProcessor":
        """Loads as transformers does; a model in the same folder must fit the processor (`check_fits`)."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if (Path(pretrained_model_name_or_path) / "config.json").is_file():
            values, _ = ArlowVLConfig.get_config_dict(pretrained_model_name_or_path)
            if values.get("model_type") == ArlowVLConfig.model_type:
                processor.check_fits(ArlowVLConfig.from_dict(values))
        return processor

    def to_dict(self) -> dict[str, Any]:
        """Settings for processor_config.json; a transformers without this package is sent to `NEEDS_PACKAGE`."""
        return super().to_dict() | {"auto_map": self.map_to_package(AutoProcessor=type(self).__name__)}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Saves as transformers does, with the file that says what the folder needs."""
        files = super().save_pretrained(save_directory, **kwargs)
        shutil.copyfile(NEEDS_PACKAGE, Path(save_directory) / NEEDS_PACKAGE.name)
        return files

    def check_fits(self, config: ArlowVLConfig) -> None:
        """Refuses a processor with another `<image>` or preprocessing than the model was trained with.

        Raises:
            CheckpointError: naming the first setting that differs, with both values.
        """
        if self.image_token_id != config.image_token_id:
            raise CheckpointError(
                f"<image> is token {self.image_token_id} of the tokenizer and {config.image_token_id} of the model; "
                "take the tokenizer that was saved with the model"
            )
        if config.vision_config.transform is None:
            return
        trained = ImageTransform.from_dict(config.vision_config.transform)
        if difference := transform_difference(trained, self.image_processor.transform):
            raise CheckpointError(
                f"the processor prepares other images than the model was trained with: {difference}; "
                "open the processor that was saved with the model without other options, or take "
                "ArlowImageProcessor.of_model(config)"
            )

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Renders a chat as transformers does, with the images of its messages, and what people wrote as plain text.

        An image part is `{"type": "image", "image" | "url" | "path" | "base64": ...}`, or OpenAI's `image_url`.

        Raises:
            ValueError: an image lies on a network, a role is no plain word, or a message holds other parts.
        """
        chat, tools, documents, images = plain_chat(self.tokenizer, conversation, tools, documents)
        if kwargs.get("tokenize"):
            sources = [[image for image in row if image is not None] for row in images]
            refuse_remote(source for row in sources for source in row)
            if any(sources):
                # Messages and contents are strings from here on, so the images travel beside them.
                given = kwargs.get("processor_kwargs") or {}
                kwargs["processor_kwargs"] = {**given, "images": sources if isinstance(chat[0], list) else sources[0]}
        named = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = named.get(chat_template or "default", chat_template)
        template = None if template is None else with_fixed_day(template)
        return super().apply_chat_template(chat, template, tools, documents, **kwargs)

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs) -> tuple[Any, Any, Any, Any]:
        if images is not None and not isinstance(images, list | tuple):
            images = list(flat_images(images))
        if text is None and images is not None:
            text = [IMAGE_TOKEN * len(list(flat_images(row))) for row in images]
        if text is not None and kwargs.get("add_special_tokens", True):
            text = self._without_second_bos(text)
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def _without_second_bos(self, text: Any) -> Any:
        """The rows without the bos that a rendered chat begins with, where the tokenizer will put one in front."""
        bos = self.tokenizer.bos_token
        rows = [text] if isinstance(text, str) else text
        begins = bos and any(isinstance(row, str) and row.startswith(bos) for row in rows)
        if isinstance(self.tokenizer, ChatTokenizer) or not begins:
            return text
        if self.tokenizer("")["input_ids"][:1] != [self.tokenizer.bos_token_id]:
            return text
        return [row.removeprefix(bos) for row in rows]

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs) -> None:
        """Raises ValueError unless every `<image>` has its image and every image its `<image>`."""
        if any(kwargs.get(name) not in (None, [], ()) for name in ("videos", "audio", "audios")):
            raise ValueError("ArlowProcessor takes text and images, not videos or audio")
        if not isinstance(text, list) or not all(isinstance(row, str) for row in text):
            raise ValueError("give ArlowProcessor text (a string or a list of strings), images, or both")
        expected = [row.count(IMAGE_TOKEN) for row in text]
        images = images or []
        came = [len(list(flat_images(row))) for row in images]
        if not any(isinstance(row, list | tuple) for row in images):
            where = "row 0 holds" if len(text) == 1 else f"rows 0 to {len(text) - 1} together hold"
            if sum(came) != sum(expected):
                raise ValueError(f"{where} {sum(expected)} {IMAGE_TOKEN} and {number_of(sum(came), 'image')} came")
            return
        if len(images) != len(text):
            raise ValueError(f"text has {len(text)} rows but images has lists for {len(images)}; give one for each")
        for place, counts in enumerate(zip(expected, came, strict=True)):
            if counts[0] != counts[1]:
                raise ValueError(
                    f"row {place} holds {counts[0]} {IMAGE_TOKEN} and {number_of(counts[1], 'image')} came for it"
                )

    def _process_images(self, images: Any, **kwargs) -> tuple[Mapping[str, Any], list[str]]:
        flat = list(flat_images(images))
        if not flat:
            return {}, []
        return self.image_processor(flat, **kwargs), [IMAGE_TOKEN] * len(flat)


def refuse_remote(sources: Iterable[Any]) -> None:
    """Raises ValueError for an image that would have to be fetched."""
    for source in sources:
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise ValueError(
                f"no image is fetched from a network, got {source:.80}; give a file, or its bytes as a data: URL"
            )
