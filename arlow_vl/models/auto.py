"""Registers Arlow with transformers' Auto classes. Importing this module does it, once."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
)

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import (
    ArlowForCausalLM,
    ArlowForQuestionAnswering,
    ArlowForSequenceClassification,
    ArlowForTokenClassification,
    ArlowModel,
    ArlowPreTrainedModel,
)
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration, ArlowVLModel
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor

for config_class in (ArlowConfig, ArlowVisionConfig, ArlowVLConfig):
    AutoConfig.register(config_class.model_type, config_class)
AutoModel.register(ArlowConfig, ArlowModel)
AutoModel.register(ArlowVLConfig, ArlowVLModel)
AutoModelForCausalLM.register(ArlowConfig, ArlowForCausalLM)
AutoModelForSequenceClassification.register(ArlowConfig, ArlowForSequenceClassification)
AutoModelForTokenClassification.register(ArlowConfig, ArlowForTokenClassification)
AutoModelForQuestionAnswering.register(ArlowConfig, ArlowForQuestionAnswering)
AutoModelForImageTextToText.register(ArlowVLConfig, ArlowVLForConditionalGeneration)
for config_class in (ArlowConfig, ArlowVLConfig):
    AutoTokenizer.register(config_class, slow_tokenizer_class=ArlowTokenizer, fast_tokenizer_class=ArlowTokenizerFast)
AutoImageProcessor.register(
    ArlowVLConfig, image_processor_classes={"pil": ArlowImageProcessor, "torchvision": ArlowImageProcessor}
)
AutoProcessor.register(ArlowVLConfig, ArlowProcessor)

SHIPPED = {
    "AutoConfig": ArlowConfig,
    "AutoModel": ArlowModel,
    "AutoModelForCausalLM": ArlowForCausalLM,
    "AutoModelForSequenceClassification": ArlowForSequenceClassification,
    "AutoModelForTokenClassification": ArlowForTokenClassification,
    "AutoModelForQuestionAnswering": ArlowForQuestionAnswering,
}


def save_with_code(model: ArlowPreTrainedModel, folder: str | Path) -> None:
    """`save_pretrained` that also writes the decoder's code, for machines where arlow_vl is not installed.

    There `trust_remote_code=True` loads the folder. `save_pretrained` alone never writes code, before or after.

    Raises:
        ValueError: the model is no decoder: the code of a vision-language model is this package and timm.
    """
    model_class, config = type(model), model.config
    auto_class = next((name for name, shipped in SHIPPED.items() if model_class is shipped), None)
    if auto_class is None:
        raise ValueError(
            f"only a decoder can be saved with its code, not {model_class.__name__}; install arlow-vl instead"
        )
    before = dict(vars(config))
    config.auto_map = {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in SHIPPED.items()}
    model_class.register_for_auto_class(auto_class)
    try:
        model.save_pretrained(folder)
    finally:
        model_class._auto_class = type(config)._auto_class = None
        if "auto_map" in before:
            config.auto_map = before["auto_map"]
        else:  # a null in config.json would be read as a map
            del vars(config)["auto_map"]


__all__ = [
    "ArlowConfig",
    "ArlowForCausalLM",
    "ArlowForQuestionAnswering",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowImageProcessor",
    "ArlowModel",
    "ArlowPreTrainedModel",
    "ArlowProcessor",
    "ArlowTokenizer",
    "ArlowTokenizerFast",
    "ArlowVLConfig",
    "ArlowVLForConditionalGeneration",
    "ArlowVLModel",
    "ArlowVisionConfig",
    "save_with_code",
]
