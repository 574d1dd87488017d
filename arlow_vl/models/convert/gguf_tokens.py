"""Tokenizers to and from GGUF's metadata: byte-level BPE ("gpt2") and sentencepiece BPE ("llama").

GGUF names the rule by which text is cut into words (`tokenizer.ggml.pre`), and llama.cpp holds the rules. One that is
not known here is refused in either direction, since other words silently give other ids.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.tokenization_arlow import PRETOKENIZE_REGEX
from arlow_vl.models.convert.probe_texts import CHARACTERS, PLAIN, around, first_difference
from arlow_vl.models.folders import refuse_other_template

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama-bpe": CL100K % "{1,3}", "qwen2": CL100K % "", "tekken": TEKKEN}
NAME_OF_SPLIT = {regex: name for name, regex in SPLITS.items()} | {PRETOKENIZE_REGEX: "qwen2"}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
BEGIN_WITH_BOS = ("llama-bpe", "tekken")  # in llama.cpp, where a file does not say
# GPT-2's cut, and the same with every digit by itself.
GPT2 = ("gpt-2", "mpt", "olmo", "jais")
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's llama_token_type
SPACE = "\u2581"  # sentencepiece's
NFC = {"type": "NFC"}
UNNORMALIZED = (
    "the tokenizer composes letters and accents (Unicode's NFC) and llama.cpp does not: the ids are the same for text "
    "that is composed already, as nearly all is"
)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
ROLE_KEYS = dict(zip(ROLES, ("bos", "eos", "unknown", "padding"), strict=True))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF keeps it."""

    model: str
    """llama.cpp's name of the algorithm."""
    pre: str
    """llama.cpp's name of the rule that cuts text into words."""
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    flags: dict[str, bool]
    """`add_bos_token`, `add_eos_token`, `add_space_prefix`."""
    ids: dict[str, int]
    """GGUF's roles: bos, eos, unknown, padding."""
    remarks: list[str] = field(default_factory=list)
    """Sentences for whoever exports it."""

    def metadata(self) -> dict[str, Any]:
        """The fields of a GGUF file."""
        fields = {"model": self.model, "pre": self.pre, "tokens": self.tokens, "token_type": self.types}
        fields |= {"merges": self.merges, "scores": self.scores} | self.flags
        fields |= {f"{role}_token_id": index for role, index in self.ids.items()}
        return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def tokenizer_of(metadata: dict[str, Any], place: Path) -> TokenizersBackend:
    """The tokenizer that a GGUF file describes. Raises CheckpointError for one that cannot be built exactly."""
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{place}: tokenizer.ggml.model {kind!r:.60} cannot be read; known are gpt2 and llama")
    for key in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if values is not None and len(values) != len(tokens):
            raise CheckpointError(
                f"{place}: tokenizer.ggml.{key} has {len(values):,} entries for {len(tokens):,} tokens; "
                "download it again"
            )
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    while types and types[-1] == UNUSED:  # rows without a token
        tokens, types = tokens[:-1], types[:-1]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise CheckpointError(f"{place}: {len(tokens) - len(vocab):,} tokens of the vocabulary stand in it twice")
    names = {}
    for role, key in ROLE_KEYS.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            if not 0 <= index < len(tokens):
                raise CheckpointError(f"{place}: tokenizer.ggml.{key}_token_id {index:,} is no token of the vocabulary")
            names[role] = tokens[index]
    refuse_other_template(template := metadata.get("tokenizer.chat_template"), place)
    build = byte_level if kind == "gpt2" else sentencepiece
    backend = build(metadata, vocab, types, place)
    backend.add_special_tokens([plain(token) for token, kind in zip(tokens, types, strict=True) if kind == CONTROL])
    backend.add_tokens([plain(token) for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    return TokenizersBackend(
        tokenizer_object=backend,
        chat_template=template,
        add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", begins_with_bos(kind, metadata)))
        and "bos_token" in names,
        add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos_token" in names,
        clean_up_tokenization_spaces=False,
        **names,
    )


def begins_with_bos(kind: str, metadata: dict[str, Any]) -> bool:
    """True if llama.cpp puts bos in front where a file does not say."""
    return kind == "llama" or cut_of(metadata) in BEGIN_WITH_BOS


def cut_of(metadata: dict[str, Any]) -> str | None:
    """Name of the rule that cuts text into words, one for all its aliases."""
    pre = metadata.get("tokenizer.ggml.pre")
    return ALIASES.get(pre, pre) if isinstance(pre, str) else None


def plain(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)


def byte_level(metadata: dict[str, Any], vocab: dict[str, int], types: Sequence[int], place: Path) -> Tokenizer:
    pre, name = metadata.get("tokenizer.ggml.pre"), cut_of(metadata)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in SPLITS:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[name]), "isolated"), to_bytes])
    elif name in SINGLE_DIGITS:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif name in GPT2:
        cut = words
    else:
        raise CheckpointError(
            f"{place}: tokenizer.ggml.pre {pre!r:.60} cuts text into words by a rule that is not known here; import "
            "the model's safetensors folder"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    lost = [part for merge in merges for part in (*merge, "".join(merge)) if part not in vocab]
    if lost or not all(len(merge) == 2 for merge in merges):
        raise CheckpointError(f"{place}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens; download it again")
    unmade = 0 if merges else sum(len(word) > 1 and kind == NORMAL for word, kind in zip(vocab, types, strict=True))
    if unmade:
        raise CheckpointError(
            f"{place}: tokenizer.ggml.merges are missing, without which no text becomes one of the {unmade:,} tokens "
            "of more than one byte; download it again, or import the model's safetensors folder"
        )
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=name in ("llama-bpe", "tekken")))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    return backend


def sentencepiece(metadata: dict[str, Any], vocab: dict[str, int], types: Sequence[int], place: Path) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list):
        raise CheckpointError(f"{place}: tokenizer.ggml.scores are missing; download it again")
    words = [token for token, kind in zip(vocab, types, strict=True) if kind == NORMAL]
    unknown = next((token for token, kind in zip(vocab, types, strict=True) if kind == UNKNOWN), None)
    merges = merges_by_score(words, vocab, scores)
    fallback = BYTE in types
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    in_front = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.normalizer = sentencepiece_spaces(in_front=in_front)
    strip = [decoders.Strip(" ", 1, 0)] if in_front else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def sentencepiece_spaces(*, in_front: bool) -> normalizers.Normalizer:
    """Writes spaces as sentencepiece's sign, and one more in front of a text."""
    prefix = [normalizers.Prepend(SPACE)] if in_front else []
    return normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])


def merges_by_score(words: Iterable[str], vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """sentencepiece joins whichever neighbours make the word of the highest score; BPE the pair that stands first."""
    known, pairs = set(words), []
    for word in known:
        for cut in range(1, len(word)):
            if word[:cut] in known and word[cut:] in known:
                pairs.append((-scores[vocab[word]], vocab[word], cut, (word[:cut], word[cut:])))
    return [pair for _, _, _, pair in sorted(pairs)]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, place: Path) -> Vocabulary:
    """The vocabulary to write for a tokenizer whose model has `rows` embedding rows.

    Raises:
        CheckpointError: llama.cpp could not be told how the tokenizer works, or would read other ids.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, pre, space_prefix = algorithm_of(spec, place)
    token_of_id = {index: token for token, index in spec["model"]["vocab"].items()}
    type_of_id = dict.fromkeys(token_of_id, NORMAL)
    if model == "llama":
        unknown = spec["model"]["vocab"].get(spec["model"].get("unk_token"))
        type_of_id |= {index: BYTE for index, token in token_of_id.items() if is_byte(token)}
        type_of_id |= {} if unknown is None else {unknown: UNKNOWN}
    for added in spec["added_tokens"]:
        token_of_id[added["id"]] = added["content"]
        if type_of_id.get(added["id"]) != UNKNOWN:
            type_of_id[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in spec["model"]["merges"]]
    ids = {key: getattr(tokenizer, f"{role}_id") for role, key in ROLE_KEYS.items()}
    probe = tokenizer("a")["input_ids"]
    flags = {
        "add_bos_token": tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id],
        "add_eos_token": tokenizer.eos_token_id is not None and probe[-1:] == [tokenizer.eos_token_id],
        "add_space_prefix": space_prefix,
    }
    if model == "llama" and sum(map(is_byte, token_of_id.values())) < 256:
        raise CheckpointError(
            f"{place}: the vocabulary lacks some of the bytes <0x00> to <0xFF>, with which llama.cpp writes characters "
            "that it does not know; export it as llama"
        )
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=[token_of_id.get(index, f"[PAD{index}]") for index in range(rows)],
        types=[type_of_id.get(index, UNUSED) for index in range(rows)],
        merges=merges if model == "gpt2" else None,
        scores=scores_of(token_of_id, merges, rows) if model == "llama" else None,
        flags=flags,
        ids={key: index for key, index in ids.items() if index is not None},
        remarks=[UNNORMALIZED] if spec["normalizer"] == NFC else [],
    )
    refuse_other_ids(tokenizer, vocabulary, place)
    return vocabulary


def refuse_other_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, place: Path) -> None:
    """Raises CheckpointError where the written vocabulary gives other ids than the tokenizer."""
    texts = probes_of(vocabulary)
    if UNNORMALIZED in vocabulary.remarks:
        texts = (text for text in texts if unicodedata.is_normalized("NFC", text))
    written = tokenizer_of(vocabulary.metadata(), place)
    found = first_difference(texts, *(lambda texts, one=one: one(texts)["input_ids"] for one in (tokenizer, written)))
    if found:
        text, ids, others = found
        raise CheckpointError(
            f"{place}: of the text {text!r:.60} the tokenizer makes the ids {ids!s:.60} and llama.cpp would make "
            f"{others!s:.60}; export it as llama"
        )


def probes_of(vocabulary: Vocabulary) -> Iterator[str]:
    """Texts that may get other ids: every token as text, and added tokens with text around them."""
    yield from (*PLAIN, *CHARACTERS)
    to_text = decoders.ByteLevel().decode
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (CONTROL, USER_DEFINED, UNKNOWN):
            yield from around(token)
        elif vocabulary.model == "gpt2":
            yield to_text([token])
        else:
            text = token.replace(SPACE, " ")
            yield text.removeprefix(" ") if vocabulary.flags["add_space_prefix"] else text


def algorithm_of(spec: dict[str, Any], place: Path) -> tuple[str, str, bool]:
    """llama.cpp's names of the algorithm and of the cut into words; True where a space is put in front of a text."""
    if spec["model"]["type"] == "BPE":
        match spec["normalizer"], spec["pre_tokenizer"]:
            case None, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
                return "gpt2", "gpt-2", False
            case (
                None,
                {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Digits", "individual_digits": True},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                    ],
                },
            ):
                return "gpt2", "smollm", False
            case (
                None | {"type": "NFC"},
                {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                },
            ) if regex in NAME_OF_SPLIT:
                return "gpt2", NAME_OF_SPLIT[regex], False
            case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}, None if (
                is_space_replacement(replace)
            ):
                return "llama", "default", True
            case {"type": "Sequence", "normalizers": [replace]}, None if is_space_replacement(replace):
                return "llama", "default", False
            case replace, None if is_space_replacement(replace):
                return "llama", "default", False
            case None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}:
                return "llama", "default", False
            case None, {"type": "Metaspace", "prepend_scheme": scheme}:
                raise CheckpointError(
                    f"{place}: the tokenizer puts a space in front of a text by Metaspace's rule {scheme!r:.60}, "
                    "llama.cpp also behind every special token and before a space; export it as llama"
                )
    raise CheckpointError(
        f"{place}: the tokenizer cuts text into words by a rule that llama.cpp has no name for here; export it as llama"
    )


def is_space_replacement(normalizer: Any) -> bool:
    match normalizer:
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
            return True
    return False


def is_byte(token: str) -> bool:
    """True for a byte as sentencepiece writes it, such as `<0x0A>`."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def scores_of(token_of_id: dict[int, str], merges: Sequence[str], rows: int) -> list[float]:
    """Scores by which sentencepiece joins in the order of the merges; whatever no merge makes has the lowest."""
    order: dict[str, int] = {}
    for merge in merges:
        order.setdefault("".join(merge.split(" ")), len(order))
    lowest = float(len(order))
    return [-float(order.get(token_of_id.get(index, ""), lowest)) for index in range(rows)]
