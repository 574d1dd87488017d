"""The decoder by its definition, in float64: loops over documents, heads and image groups, explicit softmax.

Nothing of `segments.py`, `segment_building.py` or `attention.py` in `arlow_vl/models/arlow` is called: this is what
they are measured against.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from arlow_vl import ArlowConfig, ArlowForCausalLM
from experiments.benchmarks.attention_layouts import IMAGE, VOCAB, Batch, Document, arranged, decode_steps

HIDDEN = 24
GROUPS = ("logits", "text gradient", "image gradient", "cross-block gradient", "other gradients")
SLOWEST_WAVE = 0.1
"""Radians between the numbers of two images that follow each other; the fastest wave has 1."""
NOISE = 1e-10
"""Error that the reference may have, as a share of the largest entry of all groups."""


@dataclass(frozen=True)
class Outcome:
    """Results of one way of computing for a list of documents, in an order that does not depend on the way."""

    values: dict[str, list[Tensor]]
    """The tensors of each of GROUPS; groups that the way does not have are absent."""

    def errors(self, reference: "Outcome") -> dict[str, float]:
        """Each group's largest difference over the reference's largest entry in that group.

        A group that is but float64's rounding counts against all: an image that no target sees has a gradient of 1e-17.
        """
        noise = NOISE * _largest(x for tensors in reference.values.values() for x in tensors)
        return {name: _relative_error(tensors, reference.values[name], noise) for name, tensors in self.values.items()}


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((x.abs().max().item() for x in tensors if x.numel()), default=0.0)


def _relative_error(tensors: list[Tensor], references: list[Tensor], noise: float) -> float:
    if not all(x.isfinite().all() for x in tensors):
        return float("inf")
    difference = _largest(x.cpu().double() - y for x, y in zip(tensors, references, strict=True))
    return difference / max(_largest(references), noise) if difference else 0.0


def small_decoder(head_dim: int, groups: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> ArlowForCausalLM:
    """Two layers, a cross block in front of both, `groups` query heads a key head; random weights of a useful size."""
    key_heads = 1 if groups == 8 else 2
    config = ArlowConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=groups * key_heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        max_position_embeddings=128,
        cross_attention_interval=1,
    )
    model = ArlowForCausalLM(config).eval()
    values = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=values)
        if name.endswith("_gate"):
            parameter.data.fill_(0.7)
        else:
            parameter.data = 1 + 0.2 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5
    return model.to(dtype)


def measured(
    model: ArlowForCausalLM, documents: list[Document], arrange: Callable[[list[Document]], list[Batch]]
) -> Outcome:
    """Logits and gradients of the documents' mean loss by the model, given in the batches of `arrange`."""
    device, dtype = model.device, model.dtype
    leaves = [
        [x.detach().to(device, dtype, copy=True).requires_grad_() for x in document.images] for document in documents
    ]
    batches = arrange([Document(x.tokens, leaf) for x, leaf in zip(documents, leaves, strict=True)])
    embedded: list[Tensor] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _module, _args, out: embedded.append(out))
    model.zero_grad()
    logits: dict[int, Tensor] = {}
    for batch in batches:
        inputs = {name: x.to(device) for name, x in batch.inputs.items()}
        output = model(**inputs, num_items_in_batch=target_count(documents), use_cache=False)
        embedded[-1].retain_grad()
        output.loss.backward()
        logits |= {n: output.logits[row, c : c + len(documents[n].tokens)] for n, (row, c) in batch.places.items()}
    hook.remove()
    text: dict[int, Tensor] = {}
    for batch, states in zip(batches, embedded, strict=True):
        assert states.grad is not None
        text |= {n: states.grad[row, c : c + len(documents[n].tokens)] for n, (row, c) in batch.places.items()}
    return _outcome(logits, text, leaves, dict(model.named_parameters()))


def _outcome(
    logits: dict[int, Tensor], text: dict[int, Tensor], leaves: list[list[Tensor]], weights: dict[str, Tensor]
) -> Outcome:
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in weights.items()}
    images = [torch.zeros_like(x) if x.grad is None else x.grad for document in leaves for x in document]
    values = {
        "logits": [logits[n].detach() for n in sorted(logits)],
        "text gradient": [text[n] for n in sorted(text)],
        "image gradient": images,
        "cross-block gradient": [x for name, x in gradients.items() if "cross_block" in name],
        "other gradients": [x for name, x in gradients.items() if "cross_block" not in name],
    }
    return Outcome({name: [x.detach().clone() for x in values[name]] for name in GROUPS})


@torch.no_grad()
def decoded(model: ArlowForCausalLM, documents: list[Document], dice: Random) -> Outcome:
    """Logits of the documents out of a cache that gets them piece by piece."""
    (batch,) = arranged(documents, "left padded")
    cache, pieces = None, []
    for step in decode_steps(batch, dice):
        inputs = {name: x.to(model.device, model.dtype if x.is_floating_point() else None) for name, x in step.items()}
        output = model(**inputs, cache=cache, use_cache=True)
        cache = output.cache
        pieces.append(output.logits)
    logits = torch.cat(pieces, 1)
    ends = {n: (row, c, c + len(documents[n].tokens)) for n, (row, c) in batch.places.items()}
    return Outcome({"logits": [logits[row, start:end] for _, (row, start, end) in sorted(ends.items())]})


def target_count(documents: list[Document]) -> int:
    return max(1, sum(len(document.tokens) - 1 for document in documents))


def reference(model: ArlowForCausalLM, documents: list[Document]) -> Outcome:
    """Returns what `measured` must give, from the same (rounded) weights and images, in float64 on the CPU."""
    weights = {name: x.detach().cpu().double().requires_grad_() for name, x in model.named_parameters()}
    leaves = [
        [x.detach().to(model.dtype).to(torch.double, copy=True).requires_grad_() for x in document.images]
        for document in documents
    ]
    logits, text = {}, {}
    loss = 0 * weights["model.norm.weight"].sum()  # documents of one token have no target
    for number, (document, images) in enumerate(zip(documents, leaves, strict=True)):
        tokens = torch.tensor(document.tokens)
        states = weights["model.embed_tokens.weight"][tokens]
        states.retain_grad()
        text[number] = states
        logits[number] = _decoder(model.config, weights, states, visible_images(document.tokens), images)
        log_probability = logits[number] - logits[number].exp().sum(-1, keepdim=True).log()
        loss = loss - sum(log_probability[i, tokens[i + 1]] for i in range(len(tokens) - 1)) / target_count(documents)
    loss.backward()
    gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in text.items()}
    return _outcome(logits, gradients, leaves, weights)


def visible_images(tokens: list[int]) -> list[list[int]]:
    """For each token the numbers of the images that it sees: the last group that is complete where it stands."""
    seen: list[list[int]] = []
    group: list[int] = []
    last: list[int] = []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token == IMAGE:
            group = [*group, tokens[: len(seen)].count(IMAGE)]
            if following != IMAGE:
                last, group = group, []
        seen.append(last)
    return seen


def _decoder(config: ArlowConfig, weights, states: Tensor, seen: list[list[int]], images: list[Tensor]) -> Tensor:
    for layer in range(config.num_hidden_layers):
        own = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items() if f"layers.{layer}." in k}
        states = _cross_block(config, own, states, seen, images)
        normed = _norm(config, states, own["input_layernorm.weight"])
        states = states + _self_attention(config, own, normed)
        states = states + _mlp(own, "mlp", _norm(config, states, own["post_attention_layernorm.weight"]))
    return _norm(config, states, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T


def _norm(config: ArlowConfig, states: Tensor, weight: Tensor) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight


def _mlp(weights, name: str, states: Tensor) -> Tensor:
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (F.silu(states @ gate.T) * (states @ up.T)) @ down.T


def _heads(config: ArlowConfig, weights, name: str, states: Tensor) -> Tensor:
    """(T, D) -> (T, H, Dh)"""
    return (states @ weights[name].T).unflatten(-1, (-1, config.head_dim))


def _attend(config: ArlowConfig, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """(Q, H, Dh), two (K, Hkv, Dh), (Q, K) -> (Q, H * Dh), one head after another."""
    sharing = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // sharing].T / config.head_dim**0.5
        raised = (scores - scores.amax(-1, keepdim=True)).exp() * visible
        heads.append(raised / raised.sum(-1, keepdim=True) @ value[:, head // sharing])
    return torch.cat(heads, -1)


def _self_attention(config: ArlowConfig, weights, states: Tensor) -> Tensor:
    query, key, value = (_heads(config, weights, f"self_attn.{x}_proj.weight", states) for x in "qkv")
    # The angles are float32 by definition, whatever the dtype of the model.
    inverse = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.arange(len(states)).float()[:, None, None] * inverse
    cos, sin = angles.cos().double(), angles.sin().double()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    causal = torch.ones(len(states), len(states), dtype=torch.double).tril()
    return _attend(config, turned(query), turned(key), value, causal) @ weights["self_attn.o_proj.weight"].T


def _cross_block(config: ArlowConfig, weights, states: Tensor, seen: list[list[int]], images: list[Tensor]) -> Tensor:
    own = {name.removeprefix("cross_block."): x for name, x in weights.items() if name.startswith("cross_block.")}
    runs, start = [], 0
    for group, tokens in groupby(seen):
        run = states[start : start + len(list(tokens))]
        start += len(run)
        encoder = torch.cat([_numbered(images[n], n - group[0]) for n in group]) if group else states[:0]
        runs.append(_cross_block_of_run(config, own, run, encoder) if len(encoder) else run)
    return torch.cat(runs)


def _numbered(image: Tensor, number: int) -> Tensor:
    """With the waves of its number in the group, less those of 0; their angles are float32 by definition."""
    half = math.ceil(image.shape[1] / 2)
    angles = [float(number * torch.tensor(SLOWEST_WAVE) ** (wave / half)) for wave in range(half)]
    waves = [math.sin(x) for x in angles] + [math.cos(x) - 1 for x in angles]
    return image + torch.tensor(waves[: image.shape[1]], dtype=image.dtype)


def _cross_block_of_run(config: ArlowConfig, weights, states: Tensor, encoder: Tensor) -> Tensor:
    query = _heads(config, weights, "attn.q_proj.weight", _norm(config, states, weights["attn_norm.weight"]))
    key, value = (_heads(config, weights, f"attn.{x}_proj.weight", encoder) for x in "kv")
    query, key = _norm(config, query, weights["attn.q_norm.weight"]), _norm(config, key, weights["attn.k_norm.weight"])
    visible = torch.ones(len(states), len(encoder), dtype=torch.double)
    attended = _attend(config, query, key, value, visible) @ weights["attn.o_proj.weight"].T
    states = states + weights["attn_gate"].tanh() * attended
    return states + weights["mlp_gate"].tanh() * _mlp(weights, "mlp", _norm(config, states, weights["mlp_norm.weight"]))
