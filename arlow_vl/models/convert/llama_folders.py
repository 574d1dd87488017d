"""A Llama folder as a source: config.json, safetensors and a tokenizer, as save_pretrained writes them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, TokenizersBackend
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.checkpoint_checks import INDEX, WEIGHTS, read_object, tensor_shapes
from arlow_vl.models.convert.added_tokens import plain_tokenizer
from arlow_vl.models.convert.gguf_tokens import NORMAL, SPACE, USER_DEFINED, sentencepiece_spaces
from arlow_vl.models.convert.probe_texts import CHARACTERS, PLAIN, around, first_difference
from arlow_vl.models.convert.sources import Source
from arlow_vl.models.convert.tensors import Tensors, decoder_name, read_tensors
from arlow_vl.models.folders import check_generation, one_sentence, refuse_non_finite, refuse_other_template

GENERATION = "generation_config.json"
CONVERT = "convert it to a tokenizer.json with the tools that it was made for"


def open_folder(folder: Path) -> Source:
    """Opens a folder. Raises CheckpointError for one that lacks a file, or holds a damaged one."""
    for needed in ("config.json", WEIGHTS):
        if not (folder / needed).is_file() and not (needed == WEIGHTS and (folder / INDEX).is_file()):
            raise CheckpointError(f"{folder} holds no {needed}{hint(folder, needed)}")
    values = read_object(folder / "config.json")
    rows = values.get("vocab_size")
    if (folder / GENERATION).is_file() and type(rows) is int:
        check_generation(folder, rows)

    def read() -> Tensors:
        refuse_non_finite(folder)
        return read_tensors(folder, decoder_name)

    return Source(
        folder / "config.json",
        values,
        {name: shape for name, shape in tensor_shapes(folder).items() if decoder_name(name)},
        GenerationConfig.from_pretrained(folder) if (folder / GENERATION).is_file() else None,
        lambda: read_tokenizer(folder),
        read,
    )


def hint(folder: Path, needed: str) -> str:
    """The end of a message about a folder that lacks a file."""
    gguf = next(folder.glob("*.gguf"), None)
    if gguf is not None:
        return f"; name its GGUF file, {gguf.name}"
    if needed == WEIGHTS and any(folder.glob("*.bin")):
        return "; it holds PyTorch's .bin files, which run code when they are read: save it as safetensors first"
    return "; name a folder with Llama's config.json, tokenizer and safetensors"


def read_tokenizer(folder: Path) -> TokenizersBackend:
    """The tokenizer of tokenizer.json, else of what transformers can read; no code out of the folder is run."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} holds no tokenizer.json; copy the tokenizer's files beside the weights")
    if not (folder / "tokenizer.json").is_file():
        return read_pieces(folder)
    return plain_tokenizer(read_backend(folder), folder)


def read_backend(folder: Path) -> TokenizersBackend:
    """The tokenizer by the rules of its file.

    The class that the folder names is not used: LlamaTokenizer, GPT2Tokenizer and others bring rules of their own.
    """
    with one_sentence(folder, "the tokenizer"):
        tokenizer = TokenizersBackend.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    refuse_other_template(tokenizer.chat_template, folder / "tokenizer_config.json")
    return tokenizer


def read_pieces(folder: Path) -> TokenizersBackend:
    """The tokenizer of tokenizer.model. Raises CheckpointError where sentencepiece has other ids."""
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise CheckpointError(
            f"{folder}: to read tokenizer.model, two packages are needed: pip install sentencepiece protobuf"
        )
    from sentencepiece import SentencePieceProcessor

    with one_sentence(folder, "the tokenizer"):
        processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        messages: Any = import_protobuf()
        proto = messages.ModelProto.FromString(processor.serialized_model_proto())
    refuse_other_rules(proto, folder / "tokenizer.model")
    source, in_front = read_backend(folder), proto.normalizer_spec.add_dummy_prefix
    backend = source.backend_tokenizer
    if all(piece.type != USER_DEFINED for piece in proto.pieces):  # those stand by themselves in more rules
        backend = with_sentencepiece_spaces(backend, in_front=in_front)
    tokenizer = plain_tokenizer(source, folder, backend)
    found = first_difference(
        probes_of(proto, in_front=in_front),
        lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
        processor.encode,
    )
    if found:
        text, ids, others = found
        raise CheckpointError(
            f"{folder / 'tokenizer.model'}: sentencepiece makes of the text {text!r:.60} the ids {others!s:.60}, and "
            f"what is read here {ids!s:.60}; {CONVERT}"
        )
    return tokenizer


def refuse_other_rules(proto: Any, path: Path) -> None:
    """Raises CheckpointError for a sentencepiece model whose rules are not those of Llama's."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kind = trainer.ModelType.Name(trainer.model_type).lower()
    for field, value, refused in (
        ("model_type", kind, kind != "bpe"),
        ("normalization_rule_name", normalizer.name, bool(normalizer.precompiled_charsmap)),
        ("remove_extra_whitespaces", True, normalizer.remove_extra_whitespaces),
        ("escape_whitespaces", False, not normalizer.escape_whitespaces),
        ("treat_whitespace_as_suffix", True, trainer.treat_whitespace_as_suffix),
    ):
        if refused:
            raise CheckpointError(f"{path}: {field} {value!r} is a rule that is not read here, only Llama's; {CONVERT}")


def probes_of(proto: Any, *, in_front: bool) -> Iterator[str]:
    """Texts that hold every piece of the vocabulary."""
    yield from (*PLAIN, *CHARACTERS)
    for piece in proto.pieces:
        text = piece.piece.replace(SPACE, " ")
        if piece.type == USER_DEFINED:
            yield from around(text)
        elif piece.type == NORMAL:
            yield text.removeprefix(" ") if in_front else text


def with_sentencepiece_spaces(backend: Tokenizer, *, in_front: bool) -> Tokenizer:
    """The backend with spaces handled as in Llama 2's tokenizer.json, the only rules that GGUF knows."""
    backend = Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | {"pre_tokenizer": None}))
    backend.normalizer = sentencepiece_spaces(in_front=in_front)
    return backend
