# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow with eyes: a timm encoder, a projector, and the decoder whose cross-attention blocks read what they give."""

import copy
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg

from arlow_vl.configuration_arlow import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.generation_arlow import PictureGenerationMixin
from arlow_vl.input_checks import refuse_wrong_labels
from arlow_vl.linear import ArlowLinear
from arlow_vl.loss import head_output
from arlow_vl.modeling_arlow import ArlowForCausalLM, ArlowModel, ArlowPreTrainedModel
from vision.encoder import VisionEncoder
from vision.projector import MLPProjector

logger = logging.get_logger(__name__)


class ArlowVLPreTrainedModel(ArlowPreTrainedModel):
    config: ArlowVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")

    def initialize_weights(self) -> None:
        """Also the encoder's tables that no checkpoint holds: `from_pretrained` builds on meta and loses them."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, VisionEncoder) and not next(module.parameters()).is_meta:
                module.init_non_persistent_buffers()


class ArlowVLModel(ArlowVLPreTrainedModel):
    """Encoder, projector and decoder without the head."""

    def __init__(self, config: ArlowVLConfig):
        super().__init__(config)
        vision = config.vision_config
        self.vision = VisionEncoder(vision.timm_name, blocks=tuple(vision.blocks or ()), image_size=vision.image_size)
        for module in self.vision.modules():
            module._is_hf_initialized = True  # timm has initialised its own weights
        self.projector = MLPProjector(self.vision.embed_dim, config.text_config.hidden_size)
        self.language_model = ArlowModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def project_pictures(
        self,
        pixel_values: Float[Tensor, "pictures 3 height width"] | None,
        image_features: Float[Tensor, "pictures patches features"] | None,
    ) -> Float[Tensor, "pictures patches dim"] | None:
        """Encoder tokens at the decoder's width; `image_features` are the encoder's own, computed earlier."""
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features (what the encoder made of them), not both")
        if pixel_values is not None:
            image_features = self.vision(pixel_values.to(self.projector.dtype))
        return None if image_features is None else self.projector(image_features.to(self.projector.dtype))

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ text"] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch text dim"] | None = None,
        use_cache: bool | None = None,
        pixel_values: Float[Tensor, "pictures 3 height width"] | None = None,
        image_features: Float[Tensor, "pictures patches features"] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """As `ArlowModel.forward`, with one picture for each `<image>` of `input_ids`, row by row."""
        return self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=self.project_pictures(pixel_values, image_features),
            **kwargs,
        )


class ArlowVLForConditionalGeneration(ArlowVLPreTrainedModel, PictureGenerationMixin):
    """Captions pictures and answers questions about them; without pictures, the text model that it was built from."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: ArlowVLConfig):
        super().__init__(config)
        self.model = ArlowVLModel(config)
        # The text model's class of head: another kernel would round its logits otherwise.
        self.lm_head = ArlowLinear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_text_checkpoint(cls, text_checkpoint: str | Path, vision_config: ArlowVisionConfig):
        """A text checkpoint with an encoder of random weights, a new projector, and cross-attention gates as they were.

        A checkpoint without cross-attention blocks gets new ones, closed.
        """
        text_model = ArlowForCausalLM.from_pretrained(text_checkpoint)
        changes = {"use_cross_attention": True, "_name_or_path": ""}  # a config file names no folder of ours
        text_config = type(text_model.config).from_dict(text_model.config.to_dict() | changes)
        model = cls(ArlowVLConfig(text_config=text_config, vision_config=vision_config))
        absent = model.model.language_model.load_state_dict(text_model.model.state_dict(), strict=False)
        assert not absent.unexpected_keys and all("cross_block" in key for key in absent.missing_keys), absent
        model.lm_head.load_state_dict(text_model.lm_head.state_dict())
        kept = {f"model.language_model.{key}" for key in text_model.model.state_dict()} | {"lm_head.weight"}
        new = [key for key in model.state_dict() if key not in kept]
        logger.info(f"{len(new)} tensors are new beside the text checkpoint's: {', '.join(new)}")
        return model

    def text_model(self) -> ArlowForCausalLM:
        """The text model inside, in the same memory, without the cross-attention blocks.

        Pictures have trained those, and text never enters them. So whatever is left has the bytes of the text
        checkpoint that a frozen decoder came from, whether that one had (closed) blocks or none.
        """
        config = copy.deepcopy(self.config.text_config)
        config.use_cross_attention = False
        with torch.device("meta"):
            text_model = ArlowForCausalLM(config)
        decoder = self.model.language_model
        kept = {name: tensor for name, tensor in decoder.state_dict().items() if ".cross_block." not in name}
        text_model.model.load_state_dict(kept, assign=True)
        text_model.model.rotary_emb = decoder.rotary_emb  # its tables are in no state_dict
        text_model.lm_head.load_state_dict(self.lm_head.state_dict(), assign=True)
        text_model.tie_weights()
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
        pixel_values: Float[Tensor, "pictures 3 height width"] | None = None,
        image_features: Float[Tensor, "pictures patches features"] | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """One picture for each `<image>`, row by row; `labels` and `skip_logits` as in `ArlowForCausalLM.forward`.

        Raises:
            ValueError: another number of pictures than `<image>` tokens, or both kinds of picture input.
        """
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
            **kwargs,
        )
        return head_output(self, outputs, labels, logits_to_keep, skip_logits=skip_logits, **kwargs)

    @torch.no_grad()
    def gate_openings(self) -> dict[int, tuple[float, float]]:
        """tanh of the attention and MLP gates by layer: how far each cross-attention block is open."""
        blocks = ((i, layer.cross_block) for i, layer in enumerate(self.model.language_model.layers))
        return {i: (b.attn_gate.tanh().item(), b.mlp_gate.tanh().item()) for i, b in blocks if b is not None}


__all__ = ["ArlowVLForConditionalGeneration", "ArlowVLModel", "ArlowVLPreTrainedModel"]
