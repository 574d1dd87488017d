"""Plain text to token ids, by tiktoken where it gives a tokenizer's ids, else by the tokenizer itself.

tiktoken takes a vocabulary as ranks: of all neighbours it merges those whose joint bytes have the lowest rank. A BPE
tokenizer merges only the pairs that its merges name. The two agree if ranks follow the order of the merges and every
entry, given as a text, is encoded as that entry. For if neighbours x and y spell an entry, then the merges inside x and
inside y were those that the entry alone would have had, so x and y are the pair that its merge names.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from arlow_vl.data.prompts import plain_ids
from arlow_vl.models.arlow.tokenization_arlow import LATER, PRETOKENIZE_REGEX
from arlow_vl.models.arlow.vocabulary_arlow import BYTE_OF_CHARACTER

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_REGEX, QWEN2_REGEX = CL100K % "{1,3}", CL100K % ""
NEWER_CHARACTER = re.compile(f"[{LATER}]")  # two regex engines may know different versions of Unicode
CHECKED_CHARACTERS = 2**16
"""Characters of the text that are encoded both ways before tiktoken is trusted."""
PART = 2**18
"""Characters after which a long text is cut, so that lists of ids stay short."""
LINE_START = re.compile(r"(?<=\n)(?=\S)")  # no match of the known regexes crosses it or depends on what follows
SPACES = re.compile(r"\s{64,}+")
LONGEST_SPACES = 2**16  # the engine inside tiktoken backtracks over white space, and gives up over a longer run


class OtherTokenizer(ValueError):
    """Raised with the reason why tiktoken cannot stand in for a tokenizer."""


class Encoder:
    """Encodes plain text, without bos and eos; text that spells a special token stays text.

    `reason` says why the tokenizer itself is used, which takes several times as long; None: tiktoken is used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.reason: str | None = None
        self._unchecked = CHECKED_CHARACTERS
        try:
            self._fast = tiktoken_encode(tokenizer.backend_tokenizer.to_str())
        except OtherTokenizer as error:
            self._fast, self.reason = None, str(error)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes it again of the tokenizer, as tiktoken's part cannot be pickled."""
        return Encoder, (self.tokenizer,)

    def __call__(self, texts: list[str]) -> Iterator[list[int]]:
        """Yields the ids of each text."""
        if self._unchecked > 0 and self._fast is not None:
            self._check(texts)
        if self._fast is None:
            yield from self._slow(texts)
            return
        for text in texts:
            ids = self._fast(text)
            yield self._slow([text])[0] if ids is None else ids

    def _slow(self, texts: list[str]) -> list[list[int]]:
        return plain_ids(self.tokenizer, texts)

    def _check(self, texts: list[str]) -> None:
        """Encodes the beginning of the text both ways; if the ids differ, tiktoken is not used any more."""
        assert self._fast is not None
        for text in texts:
            sample = text[: max(self._unchecked, 0)]
            self._unchecked -= len(sample)
            if sample and self._fast(sample) not in (None, self._slow([sample])[0]):
                self._fast, self.reason = None, "tiktoken gives other ids for a part of this text"
                return


def tiktoken_encode(backend: str) -> Callable[[str], list[int] | None]:
    """Returns a function from a text to its ids, or to None for a text that the tokenizer itself has to encode.

    Raises:
        OtherTokenizer: tiktoken might give other ids, going by tokenizer.json.
    """
    import tiktoken

    spec = json.loads(backend)
    pattern, dropped = _regex(spec), _dropped(spec["normalizer"])
    ranks = _ranks(spec)
    encode = tiktoken.Encoding("text", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary

    def ids(text: str) -> list[int] | None:
        for string in dropped:
            text = text.replace(string, "")
        if len(text) > LONGEST_SPACES and any(m.end() - m.start() > LONGEST_SPACES for m in SPACES.finditer(text)):
            return None
        if pattern != PRETOKENIZE_REGEX and not text.isascii() and NEWER_CHARACTER.search(text):
            return None
        return encode(text) if len(text) <= PART else [token for part in parts(text) for token in encode(part)]

    return ids


def parts(text: str) -> Iterator[str]:
    """Yields a text in parts of at least `PART` characters, each of which begins at a line."""
    start = 0
    while start < len(text):
        line = LINE_START.search(text, start + PART)
        end = line.start() if line else len(text)
        yield text[start:end]
        start = end


def _regex(spec: dict[str, Any]) -> str:
    match spec["pre_tokenizer"]:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if pattern in (PRETOKENIZE_REGEX, LLAMA3_REGEX, QWEN2_REGEX):
            return pattern
    raise OtherTokenizer("it cuts text into words by other rules than tiktoken is known to share")


def _dropped(normalizer: dict[str, Any] | None) -> list[str]:
    """Returns the strings that the normalizer removes from a text."""
    match normalizer:
        case None:
            return []
        case {"type": "Replace", "pattern": {"String": string}, "content": ""}:
            return [string]
    raise OtherTokenizer(f"it normalises text ({normalizer['type']}), which tiktoken does not")


def _ranks(spec: dict[str, Any]) -> dict[bytes, int]:
    """Returns the ids of the 256 bytes and of all merged entries, by the bytes of each."""
    model = spec["model"]
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in settings):
        raise OtherTokenizer("its model is no plain byte-level BPE")
    if any(not token["special"] for token in spec["added_tokens"]):
        raise OtherTokenizer("it has added tokens that are no special tokens")
    vocab, added = model["vocab"], {token["content"] for token in spec["added_tokens"]}
    merged = ["".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]
    ids = [vocab[token] for token in merged]
    if any(left >= right for left, right in pairwise(ids)):
        raise OtherTokenizer("its ids do not follow the order of its merges")
    entries = [*BYTE_OF_CHARACTER, *merged]
    extra = vocab.keys() - set(entries)
    if not BYTE_OF_CHARACTER.keys() <= vocab.keys() or not extra <= added or (extra and model.get("ignore_merges")):
        raise OtherTokenizer("its vocabulary is not the 256 bytes and what its merges make")
    bpe = Tokenizer.from_str(json.dumps({**spec, "model": {**model, "ignore_merges": False}})).model
    if any(len(bpe.tokenize(entry)) != 1 for entry in entries):
        raise OtherTokenizer("its merges do not lead to each of its entries")
    return {bytes(BYTE_OF_CHARACTER[character] for character in entry): vocab[entry] for entry in entries}
