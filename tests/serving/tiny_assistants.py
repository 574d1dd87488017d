"""Tiny models of both kinds, with open gates, as the commands and the server open them."""

import copy
import io

import torch
from PIL import Image

from arlow_vl.data.prompts import about_image, stop_token_ids
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.open_model import OpenModel
from arlow_vl.serving.assistant import Assistant, Prompt
from tests.conftest import open_gates
from tests.tiny_runs import TINY_MODEL, tiny_tokenizer

SIZE, SIZES = (48, 40), {"white": (30, 100)}  # of pictures, in pixels; other shapes are other numbers of tiles
UNTIED = {"tie_word_embeddings": False}  # a tied random model repeats its last token


def text_assistant(**changes) -> Assistant:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = ArlowForCausalLM(ArlowConfig(**TINY_MODEL | UNTIED | changes, vocab_size=len(tokenizer))).eval()
    spread_logits(model)
    return Assistant(OpenModel(model, tokenizer, None))


def vision_assistant(*, projector: str = "linear", transform: dict | None = None, **changes) -> Assistant:
    """float64, in which rounding decides between no two tokens. `changes` are of the text model."""
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny_tokenizer())  # the processor changes its own
    text = ArlowConfig(**TINY_MODEL | {"max_position_embeddings": 128} | UNTIED | changes, vocab_size=len(tokenizer))
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=32, transform=transform)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=text, vision_config=vision, projector=projector))
    model = model.double().eval()
    model.config.vision_config.transform = model.model.vision.image_transform(**(transform or {})).to_dict()
    model.stop_also_at(stop_token_ids(tokenizer))
    open_gates(model)
    spread_logits(model)
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), tokenizer)
    return Assistant(OpenModel(model, processor.tokenizer, processor))


def spread_logits(model) -> None:
    """Random weights of the usual size write one token for ever; larger ones write what depends on text and images."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "vision" not in name:
                weight.mul_(20 if "embed_tokens" in name or "attn.o_proj" in name else 5)


def picture(colour: str | tuple[int, int, int], size: tuple[int, int] = SIZE, form: str = "PNG") -> bytes:
    """The bytes of a file with a gradient over one colour."""
    base = Image.new("RGB", size, colour)
    ramp = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = io.BytesIO()
    Image.blend(base, ramp, 0.5).save(buffer, form)
    return buffer.getvalue()


def question(assistant: Assistant, text: str | None, *colours: str) -> Prompt:
    """About images of these colours, each in front of the text."""
    images = [assistant.image(picture(colour, SIZES.get(colour, SIZE))) for colour in colours]
    if not colours:
        return assistant.chat([{"role": "user", "content": text or "hello"}])
    (message,) = about_image(text)
    parts = [{"type": "image"}] * (len(colours) - 1) + message["content"]
    return assistant.chat([{"role": "user", "content": parts}], images)


def generated(assistant: Assistant, prompt: Prompt, max_new_tokens: int, **settings) -> list[int]:
    """What transformers' `generate` writes behind the prompt, alone."""
    images = assistant.pack(prompt.images) if prompt.images else {}
    images = {k: v.to(assistant.model.dtype) if v.is_floating_point() else v for k, v in images.items()}
    ids = torch.tensor([prompt.ids])
    out = assistant.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **images,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=assistant.tokenizer.pad_token_id,
        eos_token_id=sorted(assistant.stop_ids),
        **settings,
    )
    return out[0, ids.shape[1] :].tolist()
