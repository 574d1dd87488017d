"""Opens and checks a model folder. Every command that takes one comes through here.

Nothing that a folder says is believed: its JSON may hold anything, and its weights may be of another model.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import (
    COPY_AGAIN,
    misfit,
    open_weights,
    read_object,
    read_own_config,
    refuse_fewer_bits,
    refuse_larger_sizes,
    tensor_shapes,
    weight_files,
)
from arlow_vl.models.auto import (
    ArlowForCausalLM,
    ArlowProcessor,
    ArlowTokenizerFast,
    ArlowVLForConditionalGeneration,
)
from arlow_vl.models.folder_files import refuse_missing_files, refuse_other_kind

MODELS: dict[str, Any] = {"arlow": ArlowForCausalLM, "arlow_vl": ArlowVLForConditionalGeneration}
OWN_TOKENIZERS = ("ArlowTokenizer", "ArlowTokenizerFast")
MOST_NAMED = 3
"""Most tensors or files that an error names."""
TOKEN_IDS = """
    bos_token_id eos_token_id pad_token_id decoder_start_token_id suppress_tokens begin_suppress_tokens
    forced_bos_token_id forced_eos_token_id
""".split()
SWITCHES = """
    output_attentions output_hidden_states output_logits renormalize_logits token_healing disable_compile low_memory
    use_mtp is_assistant
""".split()
NUMBERS = {"max_new_tokens": 1, "min_new_tokens": 0, "max_time": 0.0, "min_p": 0.0, "top_h": 0.0, "guidance_scale": 1.0}
VALUES_OF_KIND = NUMBERS | dict.fromkeys(SWITCHES, False)
"""A value of the kind that belongs to each setting for which transformers has no default."""
# All that values out of a file have been seen to raise on their way through transformers and timm.
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, OSError)


def load_vision_language_model(folder: Path, *, may_be_quantised: bool = True) -> tuple[Any, Any]:
    """The model in eval mode, and its processor.

    Raises:
        CheckpointError: the folder holds no such model (`check_folder`), or a processor that prepares other images
            than the model was trained with.
    """
    check_folder(folder, "arlow_vl", may_be_quantised=may_be_quantised)
    with one_sentence(folder, "the processor and its tokenizer"):
        processor = ArlowProcessor.from_pretrained(folder)
    return load_weights(ArlowVLForConditionalGeneration, folder), processor


def load_text_model(folder: Path) -> tuple[Any, Any]:
    """The model in eval mode, and its tokenizer. Raises CheckpointError if the folder holds no such model."""
    check_folder(folder, "arlow")
    tokenizer = load_tokenizer(folder)
    return load_weights(ArlowForCausalLM, folder), tokenizer


def load_tokenizer(folder: Path) -> TokenizersBackend:
    """The tokenizer of a text model, or one by itself: Arlow's, or the one that an imported model brought.

    No code out of the folder is run. Raises CheckpointError.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer.json; `arlow tokenizer train` makes one")
    config = folder / "tokenizer_config.json"
    kind = read_object(config).get("tokenizer_class") if config.is_file() else None
    with one_sentence(folder, "the tokenizer"):
        if kind is None or kind in OWN_TOKENIZERS:
            tokenizer = ArlowTokenizerFast.from_pretrained(folder)
        else:  # not the class that the folder names: some replace the rules of the file by their own
            tokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
    refuse_other_template(tokenizer.chat_template, config)
    return tokenizer


def refuse_other_template(template: Any, place: Path) -> None:
    """Raises CheckpointError unless a chat template is a string, or strings by their names; None: there is none."""
    texts = template.values() if isinstance(template, dict) else [template]
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise CheckpointError(
            f"{place}: chat_template must be a string, or strings by their names, got {template!r:.60}; correct it, or "
            "remove it there"
        )


def check_folder(folder: Path, expected: str, *, may_be_quantised: bool = True) -> Any:
    """The configuration of a model that can be used; no network is asked, and nothing is built that takes memory.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind; the weights do not fit the configuration; a
            weight is not finite; the weights are in fewer bits, which not all that reads them can.
    """
    refuse_missing_files(folder)
    model_type = read_object(folder / "config.json").get("model_type")
    refuse_other_kind(folder, model_type, expected)
    config = read_own_config(folder, MODELS[expected].config_class)
    assert config is not None
    if not may_be_quantised:
        refuse_fewer_bits(folder, config)
    check_generation(folder, config.get_text_config().vocab_size)
    if getattr(config, "quantization_config", None) is None:  # quantised tensors have names and values of their own
        refuse_larger_sizes(folder, config)
        refuse_other_tensors(folder, config, MODELS[expected])
        refuse_non_finite(folder)
    return config


def load_weights(model_class: Any, folder: Path, *, dtype: Any = "auto") -> Any:
    """The model of a folder that `check_folder` has passed, in eval mode and frozen.

    Raises:
        CheckpointError: the weights cannot be used, or need a library that is not installed.
    """
    try:
        with one_sentence(folder, "the weights"):
            model = model_class.from_pretrained(folder, dtype=dtype)
    except ImportError as error:  # raised for quantised weights alone
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} holds weights in fewer bits, whose library is missing ({reason:.200}); for int8 and nf4 "
            "pip install 'arlow-vl[quant]'"
        ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def one_sentence(place: Path, part: str) -> Iterator[None]:
    """Turns whatever transformers raises about a folder's files into a CheckpointError of one sentence."""
    try:
        yield
    except CheckpointError as error:
        if str(place) in str(error):
            raise
        raise CheckpointError(f"{place}: {error}") from error
    except (*UNUSABLE, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{place}: {part} cannot be used ({reason:.400}); {COPY_AGAIN}") from error


def check_generation(folder: Path, vocab_size: int) -> None:
    """Raises CheckpointError unless generation_config.json, if there is one, holds settings of the right kinds."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    values = {key: value for key, value in read_object(path).items() if value is not None}
    for key, default in (GenerationConfig._get_default_generation_params() | VALUES_OF_KIND).items():
        numbers = {bool: bool, int: int, float: (int, float)}.get(type(default))
        value = values.get(key, default)
        fits = not numbers or (isinstance(value, numbers) and isinstance(value, bool) == isinstance(default, bool))
        if not fits and not (key == "early_stopping" and value == "never"):
            raise CheckpointError(
                f"{path}: {key} must be a {type(default).__name__}, got {value!r:.100}; put back the one saved there"
            )
    for key in TOKEN_IDS:
        ids = values.get(key, [])
        for token_id in ids if isinstance(ids, list) else [ids]:
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                raise CheckpointError(
                    f"{path}: {key} must be tokens of the vocabulary, 0 to {vocab_size - 1:,}, got {ids!r:.100}; "
                    "put back the one saved there"
                )
    with one_sentence(path, "a setting"):
        GenerationConfig.from_dict(values).validate()


def refuse_other_tensors(folder: Path, config: PreTrainedConfig, model_class: Any) -> None:
    """Raises CheckpointError unless the weights' headers fit the configuration's model, built on the meta device."""
    with one_sentence(folder / "config.json", "the model"), torch.device("meta"):
        model = model_class(config)
    missing, unexpected, misshaped = other_tensors(model, found := tensor_shapes(folder))
    shapes = [f"{name}, {list(found[name])} where config.json says {list(shape)}" for name, shape in misshaped.items()]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    wrong["of whole numbers, which would be taken for weights"] = whole_numbers(folder, model)
    if any(wrong.values()):
        counts = [f"{len(names):,} tensors {kind}, first {names[0]}" for kind, names in wrong.items() if names]
        raise misfit(folder, "; ".join(counts))


def whole_numbers(folder: Path, model: Any) -> list[str]:
    """Names of the tensors that are integers where the model has none; transformers would convert them."""
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    found = []
    for path in weight_files(folder):
        with open_weights(path) as file:
            names = floating & set(file.keys())
            found += sorted(name for name in names if not file.get_slice(name).get_dtype().startswith(("F", "BF")))
    return found


def other_tensors(
    model: Any, found: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str], dict[str, tuple[int, ...]]]:
    """Compares shapes of tensors by name with those of a model.

    Returns:
        Names that are missing, but for tied weights; names that the model does not have; and the model's shape of
        tensors that were found with another one.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in found and name not in model.all_tied_weights_keys]
    unexpected = [name for name in found if name not in expected]
    return missing, unexpected, {n: shape for n, shape in expected.items() if n in found and found[n] != shape}


def refuse_non_finite(folder: Path) -> None:
    """Raises CheckpointError naming the tensors that hold NaN or an infinity: the model would write nothing."""
    bad = []
    for path in weight_files(folder):
        with open_weights(path) as file:
            bad += [f"{name} of {path.name}" for name in file.keys() if not is_finite(file.get_tensor(name))]  # noqa: SIM118
    if bad:
        raise CheckpointError(
            f"{folder}: values that are not finite (NaN or infinite) in {named(bad)}; the training that wrote it "
            "diverged or the file is damaged, so take an earlier checkpoint"
        )


def is_finite(tensor: Tensor) -> bool:
    """True if smallest and largest value are finite: one pass without a copy, since a NaN becomes both."""
    if not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
        return True
    return all(math.isfinite(end) for end in tensor.aminmax())


def named(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
