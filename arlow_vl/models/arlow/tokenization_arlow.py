# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Byte-level BPE in readable Python; `tokenization_arlow_fast.py` gives the same ids, faster.

A text is cut into pieces by a regex, a piece becomes its UTF-8 bytes with one printable character for each, and
inside a piece those neighbours are joined first that training joined first (Sennrich et al., 2016, arXiv:1508.07909;
the byte characters are GPT-2's). Nothing is normalised: decoding gives every byte back.
"""

import inspect
import operator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex
from tokenizers.models import BPE
from transformers import BatchEncoding, PreTrainedTokenizer

from .chat_arlow import CHAT_TEMPLATE, QUOTE, ChatTokenizer
from .vocabulary_arlow import (
    BACKEND_FILE,
    BYTE_OF_CHARACTER,
    CHARACTER_OF_BYTE,
    SPECIAL_TOKEN_ROLES,
    VOCAB_FILES_NAMES,
    Merges,
    byte_vocab,
    check_backend_file,
    check_vocab,
    naming_damaged_json,
    read_vocab_and_merges,
)

# Letters and digits that are new in Unicode 17 and 18. They are split like signs, whatever Unicode a regex engine was
# built with: so both tokenizers agree on every character, and a trained one always splits the same way.
AFTER_UNICODE_16 = """
    558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD-A7F1 AB6C-AB6D 107BB-107BF 10940-10959
    10EC5-10EEE 11B0A 11DB0-11DF1 1246F-1247F 12550-12686 16EA0-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA
    18D09-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF 2B73A-2B73F 2B81E 2CEA2-2CEAD
    323B0-33479 3D000-3FC3F
"""
LATER = "".join("-".join(chr(int(end, 16)) for end in span.split("-")) for span in AFTER_UNICODE_16.split())
LETTER, DIGIT = rf"[^\P{{L}}{LATER}]", rf"[^\P{{N}}{LATER}]"
# Qwen2's cut (cl100k's, but a digit at a time): contractions; words; digits; signs; line ends; spaces.
PRETOKENIZE_REGEX = "|".join(
    [
        r"'(?:[sdmtSDMT]|[rR][eE]|[vV][eE]|[lL][lL])",
        rf"(?:[^\r\n\p{{L}}\p{{N}}]|[{LATER}])?{LETTER}+",
        DIGIT,
        rf" ?(?:[^\s\p{{L}}\p{{N}}]|[{LATER}])+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

PIECES = regex.compile(PRETOKENIZE_REGEX)
SURROGATE = regex.compile("[\ud800-\udfff]")
# Keywords that transformers passes to `_encode_plus` beside its own arguments.
ENCODE_KEYWORDS = {*inspect.signature(PreTrainedTokenizer._encode_plus).parameters, "split_special_tokens"}
ENCODE_KEYWORDS |= {"sanitize_control_tokens", "return_offsets_mapping", "src_lang", "tgt_lang"}
CACHED_PIECES = 2**16
CACHED_PIECE_LENGTH = 64


def well_formed(text: Any) -> Any:
    """The text, or texts nested in lists, with U+FFFD for each surrogate, since those have no UTF-8 form.

    Raises:
        ValueError: something in it is not a string.
    """
    if isinstance(text, str):
        return text if text.isascii() else SURROGATE.sub("\ufffd", text)
    if isinstance(text, list | tuple):
        return type(text)(map(well_formed, text))
    raise ValueError(f"a text must be a string, or a list of strings, got {text!a:.60} ({type(text).__name__})")


def check_call(texts: Any, keywords: dict[str, Any]) -> None:
    """Refuses calls that the base class of one of the tokenizers would accept silently.

    Raises:
        ValueError: there is no text, or a keyword is none that a tokenizer takes.
    """
    empty = isinstance(texts, list | tuple) and any(
        isinstance(text, list | tuple) and not text for text in (texts, *texts)
    )
    if empty and not keywords.get("is_split_into_words"):
        raise ValueError("there is no text to encode, got an empty list; leave out the call for an empty batch")
    unknown = keywords.keys() - ENCODE_KEYWORDS
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is no argument that a tokenizer call takes; check its spelling")


def check_ids(ids: Any) -> None:
    """Raises ValueError unless all ids are whole numbers from 0 on."""
    for index in ids if isinstance(ids, list | tuple) else [ids]:
        try:
            known = operator.index(index) >= 0
        except TypeError:
            known = False
        if not known:
            raise ValueError(
                f"an id to decode must be a whole number from 0 on, got {index!r}; in labels, put the pad token's id "
                "in the place of -100"
            )


class ArlowTokenizer(ChatTokenizer, PreTrainedTokenizer):
    """Arlow's tokenizer in Python; without arguments it knows the special tokens and the single bytes.

    `tokenizer(text)` puts bos in front unless the text begins with it, never eos; `add_bos_token=False` leaves out bos
    too. Special tokens in the text are read as such, unless `split_special_tokens=True` (per call, or for good) makes
    them plain text; in chats only the template writes them (`chat_arlow.py`). A surrogate is read as U+FFFD. Ids that
    have no entry decode to nothing. Transformers 5 gives `ArlowTokenizerFast` for `AutoTokenizer.from_pretrained`,
    whatever `use_fast` says; this class loads the same folder.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    model = BPE  # `vocab` maps tokens to ids, beside `merges`
    add_prefix_space = False  # words, too, are taken as they are
    add_bpe_version_header = True

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
        keywords = {**SPECIAL_TOKEN_ROLES, "chat_template": CHAT_TEMPLATE, **kwargs, "backend": "custom"}
        check_vocab(vocab, merges, keywords)
        self.encoder = vocab
        self.decoder = {index: token for token, index in vocab.items()}
        self.bpe_ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        self._tokens_of_piece: dict[str, list[str]] = {}
        if add_bos_token is not None:
            special_tokens_pattern = "bos" if add_bos_token else "none"
        super().__init__(special_tokens_pattern=special_tokens_pattern, **keywords)
        # The base class takes these out, so that save_pretrained would lose them.
        self.add_bos_token = special_tokens_pattern == "bos"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        with naming_damaged_json(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files, *args, **kwargs):
        check_backend_file(resolved_vocab_files.get("tokenizer_file"))
        return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs):
        vocab, merges = read_vocab_and_merges(kwargs)
        rest = {key: value for key, value in kwargs.items() if key not in (*VOCAB_FILES_NAMES, "tokenizer_file")}
        return {**rest, "vocab": vocab, "merges": merges}

    @property
    def add_bos_token(self) -> bool:
        return self.special_tokens_pattern == "bos"

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self.special_tokens_pattern = "bos" if value else "none"
        self.init_kwargs |= {"special_tokens_pattern": self.special_tokens_pattern, "add_bos_token": value}

    @property
    def vocab_size(self) -> int:
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        return {**self.encoder, **self._added_tokens_encoder}

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs) -> BatchEncoding:
        check_call(text, kwargs)
        if kwargs.pop("return_offsets_mapping", False):
            raise ValueError("ArlowTokenizer has no offsets; use ArlowTokenizerFast for return_offsets_mapping=True")
        text_pair = None if text_pair is None else well_formed(text_pair)
        text, kwargs = self.bos_once(well_formed(text), text_pair, kwargs)
        return super()._encode_plus(text, text_pair, **kwargs)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs
    ) -> tuple[str, dict[str, Any]]:
        return well_formed(text), kwargs

    def _decode(self, token_ids: Any, *args, **kwargs) -> str:
        check_ids(token_ids)
        return super()._decode(token_ids, *args, **kwargs)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        tokens = []
        for piece in PIECES.findall(text.replace(QUOTE, "")):
            tokens += self._tokens_of_piece.get(piece) or self._merge_piece(piece)
        return tokens

    def _merge_piece(self, piece: str) -> list[str]:
        tokens = self.merge([CHARACTER_OF_BYTE[byte] for byte in piece.encode()])
        if len(piece) <= CACHED_PIECE_LENGTH and len(self._tokens_of_piece) < CACHED_PIECES:
            self._tokens_of_piece[piece] = tokens
        return tokens

    def merge(self, parts: list[str]) -> list[str]:
        """Joins neighbours, the pair of lowest rank first and of equal ones the leftmost, until no merge applies.

        A heap holds the pairs that can be joined; a pair that has changed since is passed over. So a piece of n
        bytes takes n log n steps, which matters for long runs of one script or sign.
        """
        end = len(parts)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        ranks = self.bpe_ranks
        heap = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        heapify(heap)
        while heap:
            rank, left = heappop(heap)
            right = after[left]
            if right == end or ranks.get((parts[left], parts[right])) != rank:
                continue
            parts[left], parts[right] = parts[left] + parts[right], ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            for place in (before[left], left):
                if place >= 0 and after[place] < end:
                    pair = (parts[place], parts[after[place]])
                    if pair in ranks:
                        heappush(heap, (ranks[pair], place))
        return [part for part in parts if part]

    def _convert_token_to_id(self, token: str) -> int:
        index = self.encoder.get(token)
        return self.unk_token_id if index is None else index

    def _convert_id_to_token(self, index: int) -> str:
        return self.decoder.get(index, "")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of the tokens; bytes that are not UTF-8, such as a character cut in two, become U+FFFD."""
        return b"".join(map(bytes_of_token, tokens)).decode(errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes vocab.json and merges.txt; removes a tokenizer.json, which would take precedence over them."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        Path(save_directory, prefix + BACKEND_FILE).unlink(missing_ok=True)
        return super().save_vocabulary(save_directory, filename_prefix)


def bytes_of_token(token: str) -> bytes:
    """Bytes of a token; one added later may hold characters that stand for no byte, and is then taken literally."""
    if BYTE_OF_CHARACTER.keys() >= set(token):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()
