"""Heat maps over HTTP: where the model looked while it wrote an answer, as numbers that a page can draw.

They are those of `arlow explain` (see `evaluation.explain`): one forward pass over the prompt and the answer, the mean
over all layers with cross-attention, their heads and the tokens of a word.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from arlow_vl.evaluation.explain import ImageTokens, View, encoder_views, read_image_tokens, watch, words_of
from arlow_vl.evaluation.heat_maps import COLOUR_SHARE, LOWEST_TOP, RAMP
from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.encoding import ImageEncoder
from arlow_vl.serving.refusals import Refusal
from arlow_vl.serving.requests import HeatRequest

MAX_NUMBERS = 2**20  # tokens of the answer times encoder tokens of the images
LARGEST = 512  # pixels of the longer side of an image that is sent
DIGITS = 3  # decimals of the heat, in multiples of the even share


class HeatMaps:
    """Computes heat maps of one model's answers."""

    def __init__(self, assistant: Assistant, tokenizer: Any) -> None:
        """`tokenizer` must be a copy that no other thread encodes with."""
        self._assistant, self._model, self._tokenizer = assistant, assistant.model, tokenizer
        self.layers = list(self._model.gate_openings()) if assistant.sees_images else []

    def look(self, request: HeatRequest, encoder: ImageEncoder) -> list[Tensor]:
        """(tokens, encoder tokens) float32 for each of the last images, which the answer saw.

        Runs in the engine's thread.

        Raises:
            Refusal: the maps would be too large.
            RuntimeError: the heat is not finite.
        """
        images = self._images(request, encoder)
        places = sum(len(one.states) if one.of_latents is None else one.of_latents.shape[1] for one in images)
        if places * len(request.token_ids) > MAX_NUMBERS:
            message = (
                f"the heat of {len(request.token_ids):,} tokens over {places:,} places of the images is more than "
                f"{MAX_NUMBERS:,} numbers; ask for a shorter answer or show fewer images"
            )
            raise Refusal(400, message)
        ids = torch.tensor([[*request.prompt.ids, *request.token_ids]], device=self._model.device)
        watched = watch(self._model, ids, len(request.token_ids), images, layers=self.layers)
        heat = [of_image.mean(0) for of_image in watched]
        if not all(part.isfinite().all() for part in heat):
            raise RuntimeError("the heat is not finite, so the weights are damaged or diverged")
        return heat

    def _images(self, request: HeatRequest, encoder: ImageEncoder) -> list[ImageTokens]:
        shown = request.prompt.images
        if self._model.config.projector == "perceiver":  # the attention of its latents is not cached
            return [read_image_tokens(self._model, encoder.pack([image])) for image in shown]
        states = encoder.encode(shown)
        return [ImageTokens(states[image]) for image in shown]

    def describe(self, request: HeatRequest, heat: list[Tensor]) -> dict[str, Any]:
        """Returns the reply: each word with the heat of every view, row by row, in multiples of the even share."""
        views, start = [], 0
        first = len(request.prompt.images) - len(heat)
        for number, (image, part) in enumerate(zip(request.prompt.images[first:], heat, strict=True), first):
            seen = encoder_views(
                self._assistant.pack([image]),
                self._assistant.processor.image_processor.transform,
                part.shape[1],
                prefix_tokens=self._model.model.vision.num_kept_prefix_tokens,
            )
            views += [(number, view, start + view.places) for view in seen]
            start += part.shape[1]
        words = words_of(self._tokenizer, request.token_ids, torch.cat(heat, dim=1))
        described = [
            {
                "word": word.word,
                "peak": round(word.peak, DIGITS),
                "heat": [_rounded(word.heat[places] * word.heat.numel()) for _, _, places in views],
            }
            for word in words
        ]
        top = max([LOWEST_TOP, *(word.peak for word in words)])
        return {
            "object": "heat",
            "layers": self.layers,
            "places": start,
            "views": [_describe(number, view) for number, view, _ in views],
            "words": described,
            "scale": {"top": round(top, DIGITS), "colour_share": COLOUR_SHARE, "colours": RAMP.int().tolist()},
        }


def _rounded(heat: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in heat.flatten().tolist()]


def _describe(number: int, view: View) -> dict[str, Any]:
    rows, columns = view.places.shape
    image = view.image.copy()
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"image": number, "label": view.label, "rows": rows, "columns": columns, "url": url}
