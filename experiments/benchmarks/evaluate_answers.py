"""Answers that an evaluation waits for, by whole models with random weights: captions, many questions about an image.

captions    16 images at once, encoder included, as `arlow evaluate` has them written (`continue_batch`); Mllama and
            VisionEncoderDecoder of transformers by their own `generate`, around encoders of one size, with decoders of
            about as many parameters. Once all captions have 16 tokens, once they end as captions do, each for itself:
            6 to 21 tokens, 12 in the mean, the same for all three models. Goal: 1.3 times the faster peer.
questions   16 questions of 8 to 20 tokens about one image in one batch, four tokens of answer each, beside one such
            question: the image is encoded once. Goal: at most 1.3 times as long.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from arlow_vl.evaluation.generation import continue_batch
from experiments.benchmarks.decoder import SHAPE, TOY_SHAPE
from experiments.benchmarks.measure import alternate, machine_line, speed_row, table
from experiments.benchmarks.vision_language import ENCODER, IMAGE, TOY_ENCODER, build_arlow, build_mllama

PEERS = ("Mllama", "VisionEncoderDecoder")
CAPTIONS, CAPTION_GOAL = 16, 1.3
EQUAL = [16] * CAPTIONS
LIKE_CAPTIONS = [9, 12, 10, 13, 8, 21, 11, 12, 6, 15, 10, 14, 11, 17, 9, 12]
QUESTIONS, ANSWER_TOKENS, QUESTION_GOAL = 16, 4, 1.3
QUESTION_ENCODER = {"timm_name": "vit_base_patch16_224", "image_size": 224}
END, PAD = 2, 3
PROMPT = [1, IMAGE, 11, 12]


def build_encoder_decoder(shape: dict, encoder: Any, parameters: int) -> VisionEncoderDecoderModel:
    """Around a ViT of the encoder's size: GPT-2, which attends to the image in every layer, of so many parameters."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    of_layer = 8 * width**2 + 2 * width * inner
    layers = max(1, round((parameters - shape["vocab_size"] * width) / of_layer))
    blocks, size = encoder.backbone.blocks, encoder.image_size[0]
    vit = ViTConfig(
        hidden_size=encoder.embed_dim, num_hidden_layers=len(blocks), num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=blocks[0].mlp.fc1.out_features, image_size=size, patch_size=encoder.patch_size,
    )  # fmt: skip
    text = GPT2Config(
        vocab_size=shape["vocab_size"], n_embd=width, n_layer=layers, n_head=shape["num_attention_heads"],
        n_inner=inner, n_positions=128, add_cross_attention=True, bos_token_id=1, eos_token_id=2, pad_token_id=PAD,
    )  # fmt: skip
    model: Any = VisionEncoderDecoderModel(encoder=ViTModel(vit), decoder=GPT2LMHeadModel(text))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, PAD
    return model.eval()


class EndAt(LogitsProcessor):
    """Lets row i end with its `lengths[i]`-th token and not before; a prompt has `begin` tokens."""

    def __init__(self, lengths: Sequence[int], begin: int) -> None:
        self.lengths, self.begin = torch.tensor(lengths), begin

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self.lengths <= input_ids.shape[1] - self.begin + 1
        scores = scores.clone()
        scores[:, END] = torch.where(ends, scores.amax(1) + 1, -torch.inf)
        return scores


def asked(
    model: Any,
    prompts: Sequence[Sequence[int]],
    images: torch.Tensor,
    of_prompt: Sequence[int],
    lengths: Sequence[int],
):
    """As an evaluation asks; `of_prompt` are numbers of the image of each prompt, `lengths` those of the answers."""
    settings = {"max_new_tokens": max(lengths), "do_sample": False, "eos_token_id": END}
    return continue_batch(
        model,
        SimpleNamespace(pad_token_id=PAD),
        prompts,
        [[number] for number in of_prompt],
        lambda numbers: {"pixel_values": images[list(numbers)]},
        settings={**settings, "logits_processor": [EndAt(lengths, max(map(len, prompts)))]},
    )


def captions(shape: dict, encoder: dict, lengths: Sequence[int]) -> dict[str, Callable[[], object]]:
    arlow = build_arlow(shape, encoder).eval()
    tower: Any = arlow.model.vision
    models: dict[str, Any] = {"Mllama": build_mllama(shape, arlow.config.text_config, tower).eval()}
    of_text = sum(p.numel() for p in arlow.model.language_model.parameters())
    models["VisionEncoderDecoder"] = build_encoder_decoder(shape, tower, of_text)
    images = len(lengths)
    pixels = torch.randn(images, 3, *tower.image_size)
    ids = torch.tensor([PROMPT] * images)
    inputs = {
        "Mllama": {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels[:, None, None],
            "aspect_ratio_ids": torch.ones(images, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(images, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.ones(images, len(PROMPT), 1, 1, dtype=torch.long),
        },
        "VisionEncoderDecoder": {"pixel_values": pixels},
    }
    begins = {"Mllama": len(PROMPT), "VisionEncoderDecoder": 1}
    how = {"max_new_tokens": max(lengths), "do_sample": False, "pad_token_id": PAD, "eos_token_id": END}
    return {"Arlow": partial(asked, arlow, ids.tolist(), pixels, range(images), lengths)} | {
        name: partial(model.generate, **inputs[name], **how, logits_processor=[EndAt(lengths, begins[name])])
        for name, model in models.items()
    }


def questions(shape: dict, encoder: dict) -> dict[str, Callable[[], object]]:
    arlow = build_arlow(shape, encoder).eval()
    pixels = torch.randn(1, 3, *arlow.model.vision.image_size)
    many = [PROMPT[:2] + [11 + number] * (8 + number * 12 // (QUESTIONS - 1)) for number in range(QUESTIONS)]
    middle = [many[QUESTIONS // 2]]
    return {
        "one": partial(asked, arlow, middle, pixels, [0], [ANSWER_TOKENS]),
        "all": partial(asked, arlow, many, pixels, [0] * QUESTIONS, [ANSWER_TOKENS] * QUESTIONS),
    }


def answers(rounds: int, toy: bool) -> tuple[str, dict[str, object]]:
    """The text and the figures."""
    torch.manual_seed(0)
    shape, encoder = (TOY_SHAPE, TOY_ENCODER) if toy else (SHAPE, ENCODER)
    kinds = {"captions of 16 tokens": [3, 3] if toy else EQUAL}
    kinds["captions of 6 to 21 tokens"] = [2, 4] if toy else LIKE_CAPTIONS
    figures: dict[str, object] = {}
    rows: list[list[str]] = []
    for measure, lengths in kinds.items():
        timings = alternate(captions(shape, encoder, lengths), rounds)
        figures[measure], lines = speed_row(measure, timings, len(lengths), "captions/s", PEERS, CAPTION_GOAL)
        rows += lines
    timings = alternate(questions(shape, TOY_ENCODER if toy else QUESTION_ENCODER), rounds)
    ratios = timings.ratios("one", "all")  # the time of all over that of one
    took = {"median": ratios[len(ratios) // 2], "low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4]}
    shown = "{median:.2f} ({low:.2f} to {high:.2f})".format_map(took)
    milliseconds = {name: f"{1e3 * timings.median(name):,.0f} ms" for name in ("one", "all")}
    text = "\n\n".join(
        [
            f"# Answers\n\n{machine_line()}",
            table(["measure", "unit", "Arlow", *PEERS, "Arlow over the faster peer", "goal"], rows),
            table(
                ["questions about one image", "one", f"all {QUESTIONS}", "all over one", "goal"],
                [["four tokens of answer each", *milliseconds.values(), shown, f"at most {QUESTION_GOAL:.2f}"]],
            ),
        ]
    )
    return text, {"captions": figures, "questions": {"seconds": timings.seconds, "all_over_one": took}}
