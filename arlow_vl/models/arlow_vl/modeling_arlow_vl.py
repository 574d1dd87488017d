# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The vision-language model: a timm encoder, a projector, and Arlow, whose cross-attention blocks read the images."""

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg

from arlow_vl.models.arlow.checkpoint_checks import refuse_fewer_bits
from arlow_vl.models.arlow.encoder_checks import refuse_missing_images
from arlow_vl.models.arlow.generation_arlow import CrossAttentionGenerationMixin
from arlow_vl.models.arlow.input_checks import refuse_misspelt, refuse_wrong_labels
from arlow_vl.models.arlow.layers_arlow import with_zero_gradients
from arlow_vl.models.arlow.linear import ArlowLinear
from arlow_vl.models.arlow.loss import head_output
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM, ArlowModel, ArlowPreTrainedModel
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig, NeedsPackage
from arlow_vl.models.arlow_vl.encoding_arlow_vl import ImageEncodingMixin, build_projector
from arlow_vl.models.arlow_vl.image_checks import refuse_placeless_projector, refuse_two_kinds_of_image
from vision.encoder import VisionEncoder
from vision.projector import PLACE_SCALE, PerceiverResampler, PlaceEmbedding, TileEmbedding, UnitLinear

logger = logging.get_logger(__name__)


class ArlowVLPreTrainedModel(NeedsPackage, ArlowPreTrainedModel):
    config: ArlowVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Loads as transformers does. Raises CheckpointError for a projector of an earlier kind."""
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        refuse_placeless_projector(pretrained_model_name_or_path, report["missing_keys"])
        return (model, report) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TileEmbedding):
            init.zeros_(module.weight)
        elif isinstance(module, PlaceEmbedding):
            init.constant_(module.scale, PLACE_SCALE)
        elif isinstance(module, UnitLinear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents)

    def initialize_weights(self) -> None:
        """Initialises also what the checkpoint lacks of the encoder, and the tables that no checkpoint holds.

        `from_pretrained` builds on the meta device and loses both.
        """
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, VisionEncoder) and not next(module.parameters()).is_meta:
                module.initialize([name for name, tensor in _tensors(module.backbone) if not _has_values(tensor)])
                module.init_non_persistent_buffers()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, non-persistent ones too, without what quantised layers add to a state dict."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _has_values(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_hf_initialized", False)  # transformers' mark


class ArlowVLModel(ImageEncodingMixin, ArlowVLPreTrainedModel):
    """Encoder, projector and decoder without the head."""

    def __init__(self, config: ArlowVLConfig):
        super().__init__(config)
        vision = config.vision_config
        self.vision = VisionEncoder(
            vision.timm_name,
            blocks=tuple(vision.blocks or ()),
            image_size=vision.input_size,
            prefix_tokens=vision.prefix_tokens,
        )
        for part in (*self.vision.modules(), *(tensor for _, tensor in _tensors(self.vision))):
            if not getattr(part, "is_meta", False):
                part._is_hf_initialized = True  # timm has initialised its own weights
        self.projector = build_projector(config, self.vision.embed_dim)
        self.language_model = ArlowModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ text"] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch text dim"] | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        tiles_per_image: Tensor | None = None,
        tile_ids: Tensor | None = None,
        image_grids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        image_index: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultimodalBaseModelOutputWithPast:
        """Runs `ArlowModel.forward` with one image for each `<image>` of the text, row by row.

        With `image_index` the texts share images: each is encoded once, and stands at every `<image>` that names it.

        Images come as arguments of `encode_images`, or as its results. `image_outputs` has the encoder's output as
        `last_hidden_state`, and what the decoder read of each image as `pooler_output`.
        """
        refuse_misspelt(self.forward, kwargs)
        refuse_two_kinds_of_image(pixel_values, image_features, encoder_hidden_states)
        came = [x for x in (pixel_values, image_features, encoder_hidden_states) if x is not None and len(x)]
        images, states = None, {}
        if not came:
            refuse_missing_images(self.config.text_config, input_ids, attention_mask, cache)
        elif encoder_hidden_states is not None:
            states = {"encoder_hidden_states": encoder_hidden_states, "encoder_lengths": encoder_lengths}
        else:
            images = self.encode_images(
                pixel_values, image_features, tiles_per_image, tile_ids, image_grids, encoder_lengths
            )
            states = images.decoder_inputs()
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **(states | {"image_index": image_index} if states else {}),
            **kwargs,
        )
        if torch.is_grad_enabled():
            # Weights that this batch does not use, having no images, or features instead of pixels. The parts that are
            # trained are in training mode, whatever the others are.
            unused = [self.vision] * (pixel_values is None or not came) + [self.projector] * (images is None)
            weights = [weight for part in unused if part.training for weight in part.parameters()]
            weights = [
                weight for weight in weights if not hasattr(weight, "device_mesh")
            ]  # FSDP2 has not gathered those
            outputs.last_hidden_state = with_zero_gradients(outputs.last_hidden_state, weights)
        return MultimodalBaseModelOutputWithPast(
            **outputs, image_outputs=None if images is None else images.image_outputs()
        )


def settings_of_text(settings: GenerationConfig) -> GenerationConfig:
    """The text model's own generation settings, as they were before `stop_also_at`."""
    own = copy.deepcopy(settings)
    for name, value in own.__dict__.pop("of_text", {}).items():
        setattr(own, name, value)
    return own


class ArlowVLForConditionalGeneration(ArlowVLPreTrainedModel, CrossAttentionGenerationMixin):
    """Captions images and answers questions about them; without images, the text model that it was built from."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ArlowVLConfig):
        super().__init__(config)
        self.model = ArlowVLModel(config)
        # The text model's class of head: another kernel would round its logits differently.
        self.lm_head = ArlowLinear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_text_checkpoint(cls, text_checkpoint: str | Path, vision_config: ArlowVisionConfig, **settings: Any):
        """A text checkpoint with an encoder of random weights, a new projector, and cross-attention gates as they were.

        A checkpoint without cross-attention blocks gets new ones, closed unless `gate_opening` is set. `settings` are
        fields of ArlowVLConfig. What the transform of `vision_config` leaves open is the encoder's own.
        """
        text_model = ArlowForCausalLM.from_pretrained(text_checkpoint)
        refuse_fewer_bits(text_checkpoint, text_model.config)
        changes = {"use_cross_attention": True, "_name_or_path": ""}  # a config file names no folder of ours
        text_config = type(text_model.config).from_dict(text_model.config.to_dict() | changes)
        model = cls(ArlowVLConfig(text_config=text_config, vision_config=copy.deepcopy(vision_config), **settings))
        transform = model.model.vision.image_transform(**(vision_config.transform or {}))
        model.config.vision_config.transform = transform.to_dict()
        absent = model.model.language_model.load_state_dict(text_model.model.state_dict(), strict=False)
        assert not absent.unexpected_keys and all("cross_block" in key for key in absent.missing_keys), absent
        model.lm_head.load_state_dict(text_model.lm_head.state_dict())
        if model.config.gate_opening is not None:
            model.open_gates(float(model.config.gate_opening))
        model.generation_config = copy.deepcopy(text_model.generation_config)
        kept = {f"model.language_model.{key}" for key in text_model.model.state_dict()} | {"lm_head.weight"}
        new = [key for key in model.state_dict() if key not in kept]
        logger.info(f"{len(new)} tensors are new beside the text checkpoint's: {', '.join(new)}")
        return model

    def stop_also_at(self, token_ids: Sequence[int]) -> None:
        """Adds tokens that end an answer to the text model's own, which `text_model` restores."""
        settings = self.generation_config
        own = settings.eos_token_id
        if not hasattr(settings, "of_text"):  # an attribute of ours, which is saved with the rest
            settings.of_text = {"eos_token_id": own, "_from_model_config": settings._from_model_config}
            settings._from_model_config = False  # else transformers would leave our attribute in the file
        before = [] if own is None else own if isinstance(own, list) else [own]
        settings.eos_token_id = list(dict.fromkeys([*before, *token_ids]))

    def text_model(self) -> ArlowForCausalLM:
        """The text model inside, in the same memory, without the cross-attention blocks.

        Those were trained with images, and text never enters them. So what is left has the bytes of the text
        checkpoint that a frozen decoder came from, whether that one had (closed) blocks or none. It generates with
        the settings of that checkpoint.
        """
        refuse_fewer_bits(self.config._name_or_path or "the model", self.config)
        config = copy.deepcopy(self.config.text_config)
        config.use_cross_attention = False
        head, embedding = self.lm_head.weight, self.get_input_embeddings().weight
        if config.tie_word_embeddings or head is embedding:  # the weights decide: libraries part and join them
            config.tie_word_embeddings = head is embedding or torch.equal(head, embedding)
        with torch.device("meta"):
            text_model = ArlowForCausalLM(config)
        decoder = self.model.language_model
        kept = {name: tensor for name, tensor in decoder.state_dict().items() if ".cross_block." not in name}
        text_model.model.load_state_dict(kept, assign=True)
        text_model.model.rotary_emb = decoder.rotary_emb  # its tables are in no state_dict
        text_model.lm_head.load_state_dict(self.lm_head.state_dict(), assign=True)
        text_model.tie_weights()
        text_model.generation_config = settings_of_text(self.generation_config)
        return text_model.train(self.training)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ text"] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch text dim"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        tiles_per_image: Tensor | None = None,
        tile_ids: Tensor | None = None,
        image_grids: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        image_index: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultimodalCausalLMOutputWithPast:
        """Runs the model and its head, with one image for each `<image>`, row by row, as for `encode_images`.

        `labels` and `skip_logits` are those of `ArlowForCausalLM.forward`.

        Raises:
            ValueError: another number of images than `<image>` tokens, or both kinds of image input.
        """
        refuse_misspelt(self.forward, kwargs)
        text = input_ids if inputs_embeds is None else inputs_embeds
        refuse_wrong_labels(self.config.text_config, labels, text, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            image_features=image_features,
            tiles_per_image=tiles_per_image,
            tile_ids=tile_ids,
            image_grids=image_grids,
            encoder_lengths=encoder_lengths,
            image_index=image_index,
            return_dict=True,
            **kwargs,
        )
        head = head_output(self, outputs, labels, logits_to_keep, skip_logits=skip_logits, **kwargs)
        return MultimodalCausalLMOutputWithPast(**head, image_outputs=outputs.image_outputs)

    @torch.no_grad()
    def open_gates(self, opening: float) -> None:
        """Sets every gate to the value whose tanh is `opening`, in (-1, 1); 0 closes the blocks."""
        for block in self._cross_blocks().values():
            block.attn_gate.fill_(math.atanh(opening))
            block.mlp_gate.fill_(math.atanh(opening))

    @torch.no_grad()
    def gate_openings(self) -> dict[int, tuple[float, float]]:
        """tanh of the attention and MLP gates by layer: how far each cross-attention block is open."""
        return {i: (b.attn_gate.tanh().item(), b.mlp_gate.tanh().item()) for i, b in self._cross_blocks().items()}

    def _cross_blocks(self) -> dict[int, Any]:
        """The cross-attention blocks, by the index of their layer."""
        layers = enumerate(self.model.language_model.layers)
        return {i: layer.cross_block for i, layer in layers if layer.cross_block is not None}


__all__ = ["ArlowVLForConditionalGeneration", "ArlowVLModel", "ArlowVLPreTrainedModel"]
