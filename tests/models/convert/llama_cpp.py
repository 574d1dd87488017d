"""Greedy text from llama.cpp, which knows nothing of this package."""

from pathlib import Path

import xllamacpp


def server(path: Path, context: int = 256) -> xllamacpp.Server:
    """llama.cpp with a GGUF file, on the processor; with a cache of float32, whose rounding no near tie feels."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = str(path), context, 1, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cpuparams.n_threads, settings.verbosity = 1, 0
    return xllamacpp.Server(settings)


def complete(
    llama_cpp: xllamacpp.Server, prompt: str | list[int], tokens: int, forbidden: list[int]
) -> tuple[list[int], int]:
    """The ids that are written behind a prompt, greedily and none of the forbidden, and how many the prompt has."""
    request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "repeat_penalty": 1.0, "cache_prompt": False}
    answer = llama_cpp.handle_completions(
        {**request, "logprobs": 1, "logit_bias": [[index, False] for index in forbidden]}
    )
    (choice,) = answer["choices"]
    return [token["id"] for token in choice["logprobs"]["content"]], answer["usage"]["prompt_tokens"]
