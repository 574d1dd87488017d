# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Common parts of both tokenizers: special tokens, a character for each byte, and the checked reading of files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import CheckpointError

VOCAB_FILES_NAMES = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
BACKEND_FILE = "tokenizer.json"

# The index of each is its id.
SPECIAL_TOKENS = (
    "<|unk|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|mask|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
    "<|vision_start|>",
    "<|vision_end|>",
)
SPECIAL_TOKEN_ROLES: dict[str, Any] = {
    "unk_token": "<|unk|>",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "mask_token": "<|mask|>",
    "image_token": "<image>",
    "video_token": "<video>",
    "extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"],
}

COPY_AGAIN = "copy vocab.json, merges.txt and tokenizer.json again, all from one tokenizer"

Merges = list[tuple[str, str]]


def byte_characters() -> dict[int, str]:
    """A printable character for each byte: itself where it prints, else the next one from U+0100 on (GPT-2)."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    rest = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(0x100 + place) for place, byte in enumerate(rest)}


CHARACTER_OF_BYTE = byte_characters()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def byte_vocab() -> dict[str, int]:
    """The smallest vocabulary: the special tokens and the 256 bytes. It encodes every text, without merges."""
    return {token: index for index, token in enumerate([*SPECIAL_TOKENS, *sorted(BYTE_OF_CHARACTER)])}


def read_vocab_and_merges(files: dict[str, Any]) -> tuple[dict[str, int], Merges]:
    """Reads `vocab_file` and `merges_file`; `name_or_path` is their folder.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    for key, name in VOCAB_FILES_NAMES.items():
        if not files.get(key):
            folder = files.get("name_or_path", "the folder")
            raise CheckpointError(f"{folder} has no {name}; `arlow tokenizer train` writes the files of a tokenizer")
    return read_vocab(Path(files["vocab_file"])), read_merges(Path(files["merges_file"]))


def read_vocab(path: Path) -> dict[str, int]:
    try:
        vocab = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {COPY_AGAIN}") from error
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path} must map tokens to ids, got a JSON {type(vocab).__name__}; {COPY_AGAIN}")
    return vocab


def read_merges(path: Path) -> Merges:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}); {COPY_AGAIN}") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        tokens = line.split(" ")
        if len(tokens) != 2 or not all(tokens):
            raise CheckpointError(f"{path}, line {number} must hold two tokens, got {line!r:.80}; {COPY_AGAIN}")
        merges.append((tokens[0], tokens[1]))
    return merges


def check_backend_file(path: str | None) -> None:
    """Raises CheckpointError if tokenizer.json is there (None: it is not) and holds something else."""
    if not path:
        return
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    model = content.get("model") if isinstance(content, dict) and "added_tokens" in content else None
    parts = (model.get("type"), type(model.get("vocab")), type(model.get("merges"))) if isinstance(model, dict) else ()
    if parts != ("BPE", dict, list):
        raise CheckpointError(f"{path} holds no BPE vocabulary with its merges; {COPY_AGAIN}")
    rest = content | {"model": content["model"] | {"vocab": {}, "merges": []}, "added_tokens": []}
    try:
        Tokenizer.from_str(json.dumps(rest))
    except Exception as error:
        if type(error) is not Exception:  # tokenizers has no class of its own for what it cannot read
            raise
        raise CheckpointError(f"{path} is no tokenizer ({error}); {COPY_AGAIN}") from error


@contextmanager
def naming_damaged_json(folder: str | Path) -> Iterator[None]:
    """Turns the bare JSONDecodeError of a damaged file into a CheckpointError that names the folder."""
    try:
        yield
    except json.JSONDecodeError as error:
        files = "tokenizer.json or tokenizer_config.json"
        raise CheckpointError(f"{folder}: {files} is damaged ({error}); copy the folder again") from error


def check_vocab(vocab: dict[str, int], merges: Merges, keywords: dict[str, Any]) -> None:
    """Refuses a vocabulary that would silently lose a part of the text, or give it other ids than in training.

    `keywords` name the special tokens, those that were added later, and the folder.

    Raises:
        CheckpointError: the ids have holes, or vocabulary, merges and special tokens do not fit each other.
    """
    where = keywords.get("name_or_path") or "the vocabulary"
    added = {str(token) for token in keywords.get("added_tokens_decoder", {}).values()}
    special = [value for key, value in keywords.items() if key.endswith("_token")]
    special = {str(token) for token in [*special, *(keywords.get("extra_special_tokens") or [])]}
    made = {left + right for left, right in merges}
    parts = {token for merge in merges for token in merge}
    needed = [
        ("special tokens", (set(SPECIAL_TOKENS) & special) - vocab.keys()),
        ("single bytes", BYTE_OF_CHARACTER.keys() - vocab.keys()),
        ("tokens that merges name", (made | parts) - vocab.keys()),
    ]
    for kind, missing in needed:
        if missing:
            raise CheckpointError(f"{where} lacks {len(missing):,} of the {kind}, first {min(missing)!r}; {COPY_AGAIN}")
    lost = vocab.keys() - made - BYTE_OF_CHARACTER.keys() - set(SPECIAL_TOKENS) - added - special
    if lost:
        raise CheckpointError(f"{where} has no merge for {len(lost):,} tokens, first {min(lost)!r}; {COPY_AGAIN}")
    if set(vocab.values()) != set(range(len(vocab))):
        raise CheckpointError(
            f"{where}: the {len(vocab):,} tokens must have the ids from 0 on, each once; {COPY_AGAIN}"
        )
