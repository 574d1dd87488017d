"""Decoding at batch 1: the share of memory bandwidth that reading the weights takes, with and without an image."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from experiments.benchmarks.gpu.arithmetic import LAUNCH, layer_weights
from experiments.benchmarks.gpu.bench import Bench, Figure
from experiments.benchmarks.gpu.images import ENCODER
from experiments.benchmarks.vision_language import TOY_ENCODER, build_arlow, inputs_of, placed

SIZE = "0.8b"
TOKENS, TOY_TOKENS = 128, 3
GOAL = 50.0
"""Percent of the card's bandwidth."""
GOAL_WITH_IMAGE = 0.95
"""Speed over that without one."""
LAUNCHED = {"dynamic": 35, "static": 0}
"""Kernels a layer and token that the host launches one by one; static caches run as one CUDA graph."""
GRAPH_KERNELS, GRAPH_LAUNCH = 12, 1.2e-6
"""Kernels a layer in that graph, and the seconds between two of them."""
COMPILATION = 80.0
"""Seconds that a static cache's first call may take."""


def decoding(bench: Bench) -> Iterator[Figure]:
    shape: dict[str, Any] = bench.shape(SIZE)
    arlow: Any = bench.make(lambda: build_arlow(shape, TOY_ENCODER if bench.toy else ENCODER)).eval()
    with_image = placed(inputs_of({"Arlow": arlow}, 1, 1)["Arlow"], arlow)
    ids = with_image["input_ids"].clamp(min=10)
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    text, _ = layer_weights(arlow.config.text_config)
    weights = sum(p.numel() for name, p in arlow.model.language_model.named_parameters() if "cross_block" not in name)
    of_blocks = len(arlow.config.text_config.cross_attention_layers) * text
    speeds: dict[tuple[str, str], float] = {}
    for cache in ("dynamic", "static"):
        for kind, inputs, read in (("text", words, weights), ("image", with_image, weights + of_blocks)):
            if cache == "static" and not bench.has(COMPILATION):
                continue
            speeds[cache, kind] = speed = tokens_per_second(bench, arlow, inputs, cache)
            yield of_bandwidth(bench, f"Arlow, {kind}, {cache} cache", speed, read, arlow.config.text_config, cache)
        if (cache, "image") in speeds and (cache, "text") in speeds:
            over = speeds[cache, "image"] / speeds[cache, "text"]
            yield Figure(f"with an image over without, {cache} cache", over, "x", goal=GOAL_WITH_IMAGE)
    del arlow, with_image
    llama: Any = bench.make(lambda: LlamaForCausalLM(LlamaConfig(**shape))).eval()
    for cache in ("dynamic", "static"):
        if cache == "dynamic" or bench.has(COMPILATION):
            speed = tokens_per_second(bench, llama, words, cache)
            over = speeds.get((cache, "text"), 0.0) / speed
            yield Figure(f"Arlow over Llama, text, {cache} cache", over, "x", note=f"Llama {speed:,.0f} tokens/s")


def tokens_per_second(bench: Bench, model: Any, inputs: dict[str, torch.Tensor], cache: str) -> float:
    """Returns the rate of greedy decoding: the time of many tokens, less that of the prompt and the first."""
    tokens = TOY_TOKENS if bench.toy else TOKENS
    options = {"do_sample": False, "cache_implementation": "static"} if cache == "static" else {"do_sample": False}

    def run(count: int) -> None:
        model.generate(**inputs, **options, max_new_tokens=count, min_new_tokens=count)

    cases = {"first": lambda: run(1), "all": lambda: run(tokens)}
    timings = bench.timed(cases, warmup=2, rounds=min(bench.rounds, 5))
    return (tokens - 1) / max(timings.median("all") - timings.median("first"), 1e-9)


def of_bandwidth(bench: Bench, label: str, speed: float, weights: int, config: ArlowConfig, cache: str) -> Figure:
    size, bandwidth = torch.finfo(bench.dtype).bits // 8, bench.datasheet[1]
    layers = config.num_hidden_layers + len(config.cross_attention_layers) * ("image" in label)
    reading = weights * size / bench.bandwidth
    host = layers * LAUNCHED[cache] * LAUNCH
    predicted = max(reading + (layers * GRAPH_KERNELS * GRAPH_LAUNCH if cache == "static" else 0.0), host)
    return Figure(
        label,
        100 * speed * weights * size / bandwidth,
        f"% of {bandwidth / 1e12:.3g} TB/s",
        predicted=100 * weights * size / predicted / bandwidth,
        goal=GOAL if cache == "static" else None,
        note=f"{speed:,.0f} tokens/s; predicted {1e3 * predicted:.3g} ms a token: {weights * size / 1e9:.3g} GB "
        f"{1e3 * reading:.3g}, host {1e3 * host:.3g}",
    )
