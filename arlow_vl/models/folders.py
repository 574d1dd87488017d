"""Opens, checks, hashes and writes a model folder. Every command that takes one comes through here.

Nothing that a folder says is believed: its JSON may hold anything, and its weights may be of another model.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, TokenizersBackend

from arlow_vl.errors import CheckpointError, ResourceError
from arlow_vl.locks import being_written, one_writer
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
from arlow_vl.models.folder_files import refuse_missing_files, refuse_other_kind, refuse_working_folder
from vision.whole_files import put_in_place, sha256_of_file

MODELS: dict[str, Any] = {"arlow": ArlowForCausalLM, "arlow_vl": ArlowVLForConditionalGeneration}
OWN_TOKENIZERS = ("ArlowTokenizer", "ArlowTokenizerFast")
CHECKSUMS = "checksums.json"
SETTINGS = ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json")
NAMED = 3  # tensors that a sentence names
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens")
TOKEN_IDS += ("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
# A value of the kind that belongs to settings for which transformers has no default.
KINDS = {"max_new_tokens": 1, "min_new_tokens": 0, "max_time": 0.0, "min_p": 0.0, "top_h": 0.0, "guidance_scale": 1.0}
KINDS |= dict.fromkeys(("output_attentions", "output_hidden_states", "output_logits", "renormalize_logits"), False)
KINDS |= dict.fromkeys(("token_healing", "disable_compile", "low_memory", "use_mtp", "is_assistant"), False)
# All that values out of a file have been seen to raise on their way through transformers and timm.
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, OSError)
Hashes = Mapping[str, tuple[str, str]]  # name -> dtype, SHA-256


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
            return ArlowTokenizerFast.from_pretrained(folder)
        # Not the class that the folder names: some replace the rules of the file by their own.
        return TokenizersBackend.from_pretrained(folder, local_files_only=True)


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
    for key, default in (GenerationConfig._get_default_generation_params() | KINDS).items():
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
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def hash_text_tensors(folder: Path, original: Hashes | None = None) -> dict[str, tuple[str, str]]:
    """SHA-256 of the text model's tensors in a checkpoint of either kind, by its names for them, one at a time.

    A tensor all of whose values the dtype in `original` can hold is hashed in that: float32 holds bfloat16 exactly.
    """
    hashes = {}
    for path in weight_files(folder):
        with open_weights(path) as file:
            text_names = {key: text_name(key) for key in file.keys()}  # noqa: SIM118 - a file is no dict
            for key, new in text_names.items():
                if new:
                    dtype = (original or {}).get(new, (None, ""))[0]
                    hashes[new] = hash_tensor(as_dtype(file.get_tensor(key), dtype))
    return hashes


def as_dtype(tensor: Tensor, name: str | None) -> Tensor:
    """The tensor in the dtype of that name, if that changes no value of it."""
    converted = tensor if name is None else tensor.to(getattr(torch, name))
    return converted if torch.equal(converted.to(tensor.dtype), tensor) else tensor


def text_name(name: str) -> str | None:
    """The text model's name for a tensor of either model; None for one that it does not share."""
    if "cross_block" in name.split(".") or name.startswith(("model.vision.", "model.projector.")):
        return None
    return name.replace("model.language_model.", "model.", 1)


def hash_tensor(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.dtype).removeprefix("torch."), sha256_of(tensor)


def sha256_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def sha256_of_weights(folder: Path) -> str:
    """SHA-256 of the weights file; of several files, that of the lines that `sha256sum` prints for them."""
    paths = weight_files(folder)
    if len(paths) == 1:
        return sha256_of_file(paths[0])
    lines = "".join(f"{sha256_of_file(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def save_folder(
    parts: Iterable[Any], folder: Path, *, shard_size: str | None = None, finish: Callable[[Path], Any] | None = None
) -> None:
    """Writes a model and what belongs to it, with the checksums of all files, whole or not at all.

    It is written under another name, forced onto the disk, and renamed. `parts` begin with the model, whose weights
    come in files of at most `shard_size` ("2GB"; None: transformers' own bound). `finish` is given the folder before it
    has its name: what it raises leaves nothing, and what it writes has no checksum.

    Raises:
        ValueError: the folder is the one that the process is in.
        DataError: another process writes the same folder.
        ResourceError: there is no room or no permission, or the folder is there; then nothing has the final name.
    """
    refuse_working_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with one_writer(partial, is_folder=True, refusal=being_written(folder)):
            _save_in(partial, parts, folder, shard_size, finish)
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise _unsaved(folder, error) from error


def _save_in(
    partial: Path, parts: Iterable[Any], folder: Path, shard_size: str | None, finish: Callable[[Path], Any] | None
) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ResourceError(f"{folder} is there already and is not empty; name another folder")
        for left in partial.iterdir():  # by a killed process
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        model, *others = parts
        model.save_pretrained(partial, **({} if shard_size is None else {"max_shard_size": shard_size}))
        for part in others:
            part.save_pretrained(partial)
        checksums = {
            str(path.relative_to(partial)): {"sha256": sha256_of_file(path), "size": path.stat().st_size}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
        for path in partial.rglob("*.safetensors"):  # safetensors writes files that only their owner can read
            with contextlib.suppress(OSError):  # a file system without modes, where all files have the same
                path.chmod((partial / CHECKSUMS).stat().st_mode)
        if finish:
            finish(partial)
        put_in_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # A full disk has an error of its own in safetensors, and in tokenizers a plain Exception.
        if isinstance(error, SafetensorError) or type(error) is Exception:
            raise _unsaved(folder, error) from error
        raise


def _unsaved(folder: Path, error: Exception) -> ResourceError:
    return ResourceError(f"cannot save {folder}: {error}; nothing was left there, so make room and repeat")


def refuse_changed_weights(folder: Path) -> None:
    """Raises CheckpointError where weights or tokenizer differ from what `save_folder` wrote.

    Training would not notice a wrong bit. Settings may be edited, and a folder without checksums is not checked.
    """
    if (folder / CHECKSUMS).is_file() and (changes := find_changes(folder, but=(*SETTINGS, CHECKSUMS))):
        raise CheckpointError(
            f"{'; '.join(changes[:NAMED])}; {COPY_AGAIN}, or remove {CHECKSUMS} if the change is meant"
        )


def find_changes(folder: Path, *, but: Iterable[str] = ()) -> list[str]:
    """Sentences on the files that are no longer what `save_folder` wrote; none: the folder is whole.

    Files named in `but` are not checked.

    Raises:
        CheckpointError: the folder has no checksums, or they are damaged.
    """
    if not (folder / CHECKSUMS).is_file():
        raise CheckpointError(
            f"{folder} has no {CHECKSUMS}, so nothing says what its files were; `arlow fit` and `arlow checkpoint "
            "export-text` write it"
        )
    changes = []
    for name, saved in read_object(folder / CHECKSUMS).items():
        if not isinstance(saved, dict) or not {"sha256", "size"} <= saved.keys() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / CHECKSUMS}: the entry of {name!r} is damaged; {COPY_AGAIN}")
        path = folder / name
        if name in but:
            continue
        if not path.is_file():
            changes.append(f"{path}: missing")
        elif path.stat().st_size != saved["size"]:
            changes.append(f"{path}: {path.stat().st_size:,} bytes, {saved['size']:,} were saved")
        elif sha256_of_file(path) != saved["sha256"]:
            changes.append(f"{path}: SHA-256 differs from what was saved")
    return changes
