"""Registers Arlow with transformers' Auto classes. Importing this module does it, once."""

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

from arlow_vl.configuration_arlow import ArlowConfig, ArlowVisionConfig, ArlowVLConfig
from arlow_vl.modeling_arlow import (
    ArlowForCausalLM,
    ArlowForQuestionAnswering,
    ArlowForSequenceClassification,
    ArlowForTokenClassification,
    ArlowModel,
    ArlowPreTrainedModel,
)
from arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration, ArlowVLModel
from arlow_vl.processing_arlow import ArlowImageProcessor, ArlowProcessor
from arlow_vl.tokenization_arlow import ArlowTokenizer
from arlow_vl.tokenization_arlow_fast import ArlowTokenizerFast

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
]
