"""Builds the compared models: one text model, shown images in four ways through the same kind of projector."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaForCausalLM

from arlow_vl.data.prompts import IGNORED
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.convert.exporting import TextPart, read_text_part
from arlow_vl.training.optimizers import is_gate
from experiments.peers.data import Batch
from vision.places import grid_places
from vision.projector import LinearProjector

OPENING = 0.95
"""tanh of Arlow's gates at the start."""


class Peer(nn.Module):
    """A decoder behind a linear projector with places; subclasses define how text reads the images.

    Args:
        decoder: A causal language model of transformers, whose frozen weights require no gradient.
        features: Width of the encoder's features.
        side: Number of rows, and of columns, of patches.
    """

    def __init__(self, decoder: Any, features: int, side: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.projector = LinearProjector(features, decoder.config.hidden_size)
        self.places = nn.Buffer(grid_places(side, side), persistent=False)

    def encode(
        self, features: Float[Tensor, "batch images patches features"]
    ) -> Float[Tensor, "batch images patches dim"]:
        return self.projector(features, self.places)

    def read(
        self,
        input_ids: Int[Tensor, "batch text"],
        images: Float[Tensor, "batch images patches dim"],
        cache: Any = None,
    ) -> Float[Tensor, "batch text dim"]:
        """Computes the states of text that reads the images of its row; a filled cache holds the images already."""
        raise NotImplementedError

    def new_cache(self) -> Any:
        return DynamicCache(config=self.decoder.config)

    def logits(self, states: Float[Tensor, "*some dim"]) -> Float[Tensor, "*some vocab"]:
        return self.decoder.get_output_embeddings()(states)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Computes the loss in nats per token, with logits only where a label counts."""
        states = self.read(batch.input_ids, self.encode(batch.features))
        labels = batch.labels[:, 1:]
        counts = labels != IGNORED
        return F.cross_entropy(self.logits(states[:, :-1][counts]), labels[counts])


class Arlow(Peer):
    """Gated cross-attention blocks before some layers."""

    def read(self, input_ids, images, cache=None):
        is_first = cache is None or cache.get_seq_length() == 0
        states = {"encoder_hidden_states": images.flatten(0, 1)} if is_first else {}
        return self.decoder.model(input_ids, cache=cache, use_cache=cache is not None, **states).last_hidden_state


class EarlyFusion(Peer):
    """Image tokens in the text, in place of its `<image>`s (LLaVA, arXiv:2304.08485)."""

    def __init__(self, decoder: Any, features: int, side: int, image_token_id: int) -> None:
        super().__init__(decoder, features, side)
        self.image_token_id = image_token_id

    def read(self, input_ids, images, cache=None):
        """Computes the states of the text; its `<image>`s are adjacent, and at the same position in every row."""
        states = self.decoder.get_input_embeddings()(input_ids)
        is_first = cache is None or cache.get_seq_length() == 0
        (places,) = (input_ids[0] == self.image_token_id).nonzero(as_tuple=True)
        first, behind = (int(places[0]), int(places[-1]) + 1) if is_first else (0, 0)
        if is_first:
            states = torch.cat([states[:, :first], images.flatten(1, 2), states[:, behind:]], dim=1)
        added = states.shape[1] - input_ids.shape[1]
        outputs = self.decoder.model(inputs_embeds=states, cache=cache, use_cache=cache is not None)
        read = outputs.last_hidden_state
        return torch.cat([read[:, :first], read[:, first + added :]], dim=1)


class Mllama(Peer):
    """Layers of gated cross-attention among those of self-attention (Llama 3, arXiv:2407.21783, section 7.2)."""

    def read(self, input_ids, images, cache=None):
        is_first = cache is None or cache.get_seq_length() == 0
        tokens = images.flatten(1, 2)
        # Without a mask, SDPA in transformers would treat these layers as causal.
        sees = torch.ones(1, 1, input_ids.shape[1], tokens.shape[1], dtype=torch.bool)
        return self.decoder.model(
            input_ids,
            cross_attention_states=tokens if is_first else None,
            cross_attention_mask=sees,
            cache=cache,
            use_cache=cache is not None,
        ).last_hidden_state


class CrossAttention(Peer):
    """Cross-attention without gates in every layer, as VisionEncoderDecoderModel joins a decoder to an encoder."""

    def read(self, input_ids, images, cache=None):
        return self.decoder.transformer(
            input_ids, encoder_hidden_states=images.flatten(1, 2), cache=cache, use_cache=cache is not None
        ).last_hidden_state

    def new_cache(self) -> Any:
        return EncoderDecoderCache(super().new_cache(), super().new_cache())


def build_arlow(text: Path, features: int, side: int, *, opening: float = OPENING, **changes: Any) -> Peer:
    """Builds Arlow; blocks that the text model lacks are initialised anew."""
    peer = Arlow(ArlowForCausalLM.from_pretrained(text, **changes), features, side)
    return train_only(open_gates(peer, opening), lambda name: ".cross_block." in name)


def build_arlow_trained(text: Path, features: int, side: int) -> Peer:
    return train_only(build_arlow(text, features, side), lambda name: True)


def build_arlow_anew(text: Path, features: int, side: int) -> Peer:
    """Builds Arlow with blocks that are drawn anew for each seed."""
    peer = build_arlow(text, features, side)
    for name, module in peer.decoder.named_modules():
        if ".cross_block." in name and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=peer.decoder.config.initializer_range)
    return peer


def open_gates(peer: Peer, opening: float) -> Peer:
    for name, parameter in peer.named_parameters():
        if is_gate(name):
            parameter.data.fill_(math.atanh(opening))
    return peer


def build_early_fusion(text: Path, features: int, side: int) -> Peer:
    image = ArlowConfig.from_pretrained(text).image_token_id
    return EarlyFusion(llama_of(read_text_part(text)), features, side, image)


def build_early_fusion_frozen(text: Path, features: int, side: int) -> Peer:
    return train_only(build_early_fusion(text, features, side), lambda name: False)


def build_mllama(text: Path, features: int, side: int) -> Peer:
    """Builds Mllama with cross-attention layers where Arlow has its blocks, before the text model's layers."""
    part, in_front_of = read_text_part(text), ArlowConfig.from_pretrained(text).cross_attention_layers
    fields = {name: value for name, value in part.config.to_dict().items() if name in MLLAMA_FIELDS}
    fields["num_hidden_layers"] += len(in_front_of)
    fields["tie_word_embeddings"] = False  # its embedding has eight rows more than its head
    cross = [layer + number for number, layer in enumerate(in_front_of)]
    decoder = MllamaForCausalLM(MllamaTextConfig(**fields, cross_attention_layers=cross))
    own = [layer for layer in range(fields["num_hidden_layers"]) if layer not in cross]
    llama = llama_of(part)
    for source, layer in zip(llama.model.layers, own, strict=True):
        decoder.model.layers[layer].load_state_dict(source.state_dict())
    decoder.model.norm.load_state_dict(llama.model.norm.state_dict())
    decoder.lm_head.load_state_dict(llama.lm_head.state_dict())
    decoder.model.embed_tokens.weight.data[: part.config.vocab_size] = llama.model.embed_tokens.weight.data
    trained = tuple(f"model.layers.{layer}." for layer in cross)
    return train_only(Mllama(decoder, features, side), lambda name: name.startswith(trained))


def build_mllama_open(text: Path, features: int, side: int) -> Peer:
    return open_gates(build_mllama(text, features, side), OPENING)


MLLAMA_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_parameters"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def build_cross_attention(text: Path, features: int, side: int) -> Peer:
    """Builds GPT-2's decoder with the text model's width, depth and vocabulary, untrained as no pretrained one fits."""
    config = read_text_part(text).config
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            initializer_range=config.initializer_range,
            add_cross_attention=True,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    )
    return CrossAttention(decoder, features, side)


BUILDERS: dict[str, Callable[[Path, int, int], Peer]] = {
    "Arlow": build_arlow,
    "Mllama": build_mllama,
    "early fusion": build_early_fusion,
    "cross-attention from scratch": build_cross_attention,
    "early fusion, decoder frozen": build_early_fusion_frozen,
}
"""Builders by name; arguments are (text model, width of the features, rows of patches)."""
VARIANTS: dict[str, Callable[[Path, int, int], Peer]] = {
    "Arlow, gates closed at the start": partial(build_arlow, opening=0.0),
    "Arlow, gates half open": partial(build_arlow, opening=0.5),
    "Arlow, blocks drawn anew for each seed": build_arlow_anew,
    "Arlow, a block in front of every layer": partial(build_arlow, cross_attention_interval=1),
    "Arlow, decoder trained too": build_arlow_trained,
    "Mllama, gates open at the start": build_mllama_open,
}
"""Builders of variants that may explain a difference, trained at Arlow's rate."""


def train_only(peer: Peer, of_decoder: Callable[[str], bool]) -> Peer:
    """Freezes the decoder except parameters whose names are chosen; the projector is trained."""
    for name, parameter in peer.decoder.named_parameters():
        parameter.requires_grad_(of_decoder(name))
    return peer


def llama_of(part: TextPart) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(None, config=part.config, state_dict=part.tensors, dtype=part.dtype)


def trained(peer: Peer) -> int:
    return sum(parameter.numel() for parameter in peer.parameters() if parameter.requires_grad)
