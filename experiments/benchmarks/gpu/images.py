"""Training with images: utilisation beside text's, Mllama and LLaVA at many images a row, features cached or not."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from arlow_vl import ArlowConfig, ArlowForCausalLM
from experiments.benchmarks import vision_language
from experiments.benchmarks.decoder import adamw_step
from experiments.benchmarks.gpu.arithmetic import image_work, text_work
from experiments.benchmarks.gpu.bench import Bench, Figure
from experiments.benchmarks.gpu.text import in_form, in_memory, text_as_loaded
from experiments.benchmarks.vision_language import IMAGE, TOY_ENCODER, as_loaded, build_arlow, labels_of

ENCODER = {"timm_name": "vit_base_patch16_224", "image_size": 224}
SIZES = ("0.3b", "0.1b")
ROWS, ROW = 8, 2048
TOKENS_OF_IMAGE, TOY_TOKENS = 128, 8
"""Text that reads an image, the `<image>` among it."""
GOAL_OVER_TEXT = 0.95
GOALS_OVER_MLLAMA = {1: 1.1, 4: 1.5, 16: 2.0}
"""By images a row."""
IMAGES = 256
"""Images of a step, however many a row."""
GOAL_CACHED = 0.9


def image_text(bench: Bench) -> Iterator[Figure]:
    """Utilisation with a frozen ViT-B/16 in the step, over that of text alone in rows of the same width."""
    for size in SIZES[-1:] if bench.toy else SIZES:
        if bench.has(50.0):
            torch._dynamo.reset()
            yield from in_memory(partial(beside_text, bench, size), 1 if bench.toy else ROWS)


def beside_text(bench: Bench, size: str, rows: int) -> Iterator[Figure]:
    shape = bench.shape(size)
    text = bench.make(lambda: ArlowForCausalLM(ArlowConfig(**shape, use_cross_attention=False)))
    model: Any = bench.make(lambda: build_arlow(shape, TOY_ENCODER if bench.toy else ENCODER))
    each = TOY_TOKENS if bench.toy else TOKENS_OF_IMAGE
    row = 2 * each if bench.toy else ROW
    ids = torch.randint(10, shape["vocab_size"], (rows, row))
    with_images = ids.clone()
    with_images[:, ::each] = IMAGE
    images = rows * row // each
    pixels = torch.randn(images, 3, *model.model.vision.image_size)
    seeing = as_loaded({"input_ids": with_images, "pixel_values": pixels}, model)
    seeing |= {"labels": labels_of(seeing), "use_cache": False}
    step = partial(adamw_step(model, seeing), skip_logits=True)
    words = partial(adamw_step(text, text_as_loaded(text, ids)), skip_logits=True)
    work = text_work(text.config, ids.numel(), row)
    encoder = model.model.vision
    matrices = sum(p.numel() for p in encoder.parameters() if p.ndim > 1)
    seen = {"tokens": ids.numel(), "images": images, "patches": encoder.num_patches}
    measures = (matrices, encoder.embed_dim, len(encoder.backbone.blocks))
    both = work + image_work(model.config.text_config, **seen, encoder=measures)
    for form in ("eager", "compiled"):
        if form == "compiled":
            blocks = [*text.model.layers, *model.model.language_model.layers, *encoder.backbone.blocks]
            bench.compile(blocks)
        label = f"{size}, {rows} x {row}, {images} images, {form}"
        alone = next(in_form(bench, f"text, {label}", {"Arlow": words}, work, goal=None))
        seeing_too = next(in_form(bench, f"image-text, {label}", {"Arlow": step}, both, goal=None))
        yield from (alone, seeing_too)
        yield Figure(
            f"image-text over text, {label}",
            seeing_too.value / alone.value,
            "x",
            predicted=both.operations / both.seconds(bench, form) * work.seconds(bench, form) / work.operations,
            goal=GOAL_OVER_TEXT if form == "compiled" else None,
        )


def images_a_row(bench: Bench) -> Iterator[Figure]:
    """Images a second of a whole step by three models around one encoder."""
    shape = bench.shape("0.1b")
    models: Any = vision_language.build(shape, TOY_ENCODER if bench.toy else vision_language.ENCODER)
    models = {name: model.to(bench.device, bench.dtype) for name, model in models.items()}
    for images, goal in GOALS_OVER_MLLAMA.items():
        if not bench.has(15.0):
            return
        rows = 1 if bench.toy else IMAGES // images
        steps = vision_language.training(models, images, rows)
        memory = {name: bench.peak_bytes(run) for name, run in steps.items()}
        timings = bench.timed(steps)
        for name in steps:
            ours = name == "Arlow, skip_logits"
            yield Figure(
                f"{name}, {rows} rows of {images} images: speed over Mllama",
                timings.speed_over(name, "Mllama")["median"],
                "x",
                goal=goal if ours else None,
                note=f"{rows * images / timings.median(name):,.0f} images/s, {memory[name] / 2**30:.2f} GiB",
            )


def cached_features(bench: Bench) -> Iterator[Figure]:
    """Compares the cost of the frozen encoder in a step with that of reading its features."""
    shape = bench.shape("0.1b")
    model: Any = bench.make(lambda: build_arlow(shape, TOY_ENCODER if bench.toy else ENCODER))
    images, rows = (2, 1) if bench.toy else (4, 16)
    steps = vision_language.by_source({"Arlow": model}, images, rows)
    timings = bench.timed(steps)
    for name in steps:
        yield Figure(
            f"{name}, {rows} rows of {images} images: speed over text only",
            timings.speed_over(name, "text only")["median"],
            "x",
            goal=GOAL_CACHED if name == "cached features" else None,
            note=f"{rows * images / timings.median(name):,.0f} images/s; features lie on the device",
        )
