# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Arlow's tokenizer on the Rust library `tokenizers`: the ids of `tokenization_arlow.py`, and its training."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import regex
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import BatchEncoding, TokenizersBackend

from .chat_arlow import CHAT_TEMPLATE, ChatTokenizer, drop_quotes
from .errors import DataError
from .tokenization_arlow import PRETOKENIZE_REGEX, ArlowTokenizer, check_call, check_ids, well_formed
from .vocabulary_arlow import (
    BACKEND_FILE,
    BYTE_OF_CHARACTER,
    SPECIAL_TOKEN_ROLES,
    SPECIAL_TOKENS,
    VOCAB_FILES_NAMES,
    Merges,
    byte_vocab,
    check_backend_file,
    check_vocab,
    naming_damaged_json,
    read_vocab_and_merges,
)

MIN_FREQUENCY = 2
LINE_START = regex.compile(r"(?<=\n)(?=\S)")
TRAINING_PART = 2**16


class ArlowTokenizerFast(ChatTokenizer, TokenizersBackend):
    """Arlow's tokenizer in Rust, with offsets. In all else it behaves as `ArlowTokenizer`."""

    vocab_files_names = {**VOCAB_FILES_NAMES, "tokenizer_file": BACKEND_FILE}
    slow_tokenizer_class = ArlowTokenizer
    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: Merges | None = None,
        *,
        add_bos_token: bool | None = None,
        special_tokens_pattern: str = "bos",
        **kwargs,
    ) -> None:
        vocab, merges = byte_vocab() if vocab is None else vocab, merges or []
        keywords = {**SPECIAL_TOKEN_ROLES, "chat_template": CHAT_TEMPLATE, **kwargs, "backend": "tokenizers"}
        check_vocab(vocab, merges, keywords)
        self._tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
        cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
        self._tokenizer.decoder = decoders.ByteLevel()
        drop_quotes(self._tokenizer)
        if add_bos_token is None:
            add_bos_token = special_tokens_pattern == "bos"
        super().__init__(add_bos_token=add_bos_token, special_tokens_pattern=special_tokens_pattern, **keywords)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        with naming_damaged_json(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files, *args, **kwargs):
        check_backend_file(resolved_vocab_files.get("tokenizer_file"))
        return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs):
        if not kwargs.get("tokenizer_file"):
            kwargs["vocab"], kwargs["merges"] = read_vocab_and_merges(kwargs)
        return super().convert_to_native_format(trust_remote_code, **kwargs)

    @property
    def special_tokens_pattern(self) -> str:
        """The setting `add_bos_token` in the form that both tokenizers save: "bos" or "none"."""
        return "bos" if self.add_bos_token else "none"

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs) -> BatchEncoding:
        check_call(text, kwargs)
        text_pair = None if text_pair is None else well_formed(text_pair)
        text, kwargs = self.bos_once(well_formed(text), text_pair, kwargs)
        return super()._encode_plus(text, text_pair, **kwargs)

    def _decode(self, token_ids: Any, *args, **kwargs) -> str:
        check_ids(token_ids)
        return super()._decode(token_ids, *args, **kwargs)

    def _save_pretrained(self, save_directory, file_names, legacy_format=None, filename_prefix=None):
        """Adds vocab.json and merges.txt, which `ArlowTokenizer` reads."""
        files = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return files + self.save_vocabulary(save_directory, filename_prefix)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return tuple(self.backend_tokenizer.model.save(str(save_directory), filename_prefix))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> ArlowTokenizerFast:
    """A tokenizer with `vocab_size` entries: special tokens, the 256 bytes, then the merges learnt from `texts`.

    The same texts, in any order, give the same tokenizer. Pairs that occur once are not merged; where that leaves
    fewer entries, one printed line says so.

    Raises:
        ValueError: `vocab_size` does not hold the special tokens and the bytes.
        DataError: there is no text.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several documents, got one string; put it into a list")
    smallest = len(SPECIAL_TOKENS) + len(BYTE_OF_CHARACTER)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (special tokens and bytes), got {vocab_size}")
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(BYTE_OF_CHARACTER),
        show_progress=sys.stderr.isatty(),
    )
    parts = training_parts(texts)
    first = next(parts, None)
    if first is None:
        raise DataError("no text to train a tokenizer on: every document is empty; name files that hold text")
    tokenizer = ArlowTokenizerFast()
    tokenizer.backend_tokenizer.train_from_iterator(chain([first], parts), trainer)
    if len(tokenizer) < vocab_size:
        print(f"the text gave {len(tokenizer):,} tokenizer entries, not the {vocab_size:,} asked for", flush=True)
    return tokenizer


def training_parts(texts: Iterable[str]) -> Iterator[str]:
    """The texts in parts of 64 Ki characters or more, so that one long file does not fill the memory.

    A part begins at the start of a line that has no white space there: no piece of the regex reaches across it.
    """
    for text in map(well_formed, texts):
        start = 0
        while start < len(text):
            line = LINE_START.search(text, start + TRAINING_PART)
            end = line.start() if line else len(text)
            yield text[start:end]
            start = end
