"""Tokens that Arlow adds behind those of an imported tokenizer, and takes out again at the export.

No earlier id changes. tokenizer_config.json records what was added under "imported", so every stage keeps the record
with the tokenizer.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import CHAT_TEMPLATE, IMAGE_TOKEN, QUOTE
from arlow_vl.models.arlow.checkpoint_checks import COPY_AGAIN
from arlow_vl.models.arlow.vocabulary_arlow import SPECIAL_TOKEN_ROLES
from arlow_vl.printing import visible

RECORD = "imported"
PAD_TOKEN = SPECIAL_TOKEN_ROLES["pad_token"]
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")  # what Arlow's own chat template writes
KEPT = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")
LARGEST_SPARE_SHARE = 1 / 8  # of the rows; vocabularies are padded to round numbers, by 2% at most in what was seen


@dataclass(frozen=True)
class Additions:
    """Additions that the import made to a tokenizer."""

    vocab_size: int
    """Embedding rows that the source has."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Special tokens that it lacked, with their ids."""
    roles: dict[str, str | None] = field(default_factory=dict)
    """Attributes that the import changes, with their values before it."""

    @property
    def rows(self) -> int:
        """Embedding rows that the model needs now."""
        return max([self.vocab_size, *(index + 1 for index in self.tokens.values())])

    def record(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "tokens": list(self.tokens), "roles": self.roles}


def plain_tokenizer(
    source: PreTrainedTokenizerBase,
    place: Path,
    backend: Tokenizer | None = None,
    changes: dict[str, str | None] | None = None,
) -> TokenizersBackend:
    """A TokenizersBackend with the source's ids, whose own class might build other rules than tokenizer.json holds.

    `backend` replaces the source's own, `changes` its attributes. Raises CheckpointError for a tokenizer written in
    Python.
    """
    backend = backend or getattr(source, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"{place}: the tokenizer has no tokenizer.json, and none can be made of what it has")
    names = {name: str(token) for name, token in source.special_tokens_map.items() if isinstance(token, str)}
    extra = [str(token) for token in getattr(source, "extra_special_tokens", None) or []]
    kept = {name: getattr(source, name) for name in KEPT if getattr(source, name, None) is not None}
    given = {name: value for name, value in (names | kept | (changes or {})).items() if value is not None}
    return TokenizersBackend(tokenizer_object=backend, extra_special_tokens=extra, **given)


def with_additions(source: TokenizersBackend, vocab_size: int, place: Path) -> tuple[TokenizersBackend, Additions]:
    """The tokenizer with `<image>`, and a padding token and chat tokens where it lacks them.

    `vocab_size` is the number of the model's embedding rows.

    Raises:
        CheckpointError: tokens and rows do not belong together, there is no end of text, or a token that Arlow needs
            is an ordinary word of the vocabulary or would get the id of one.
    """
    before = source.get_vocab()
    refuse_other_rows(before, vocab_size, place)
    if source.eos_token is None:
        raise CheckpointError(
            f"{place}: the tokenizer names no eos_token, so no text would end; name one in its config"
        )
    needed, changes = [IMAGE_TOKEN], {}
    if source.bos_token is None:
        changes["bos_token"] = source.eos_token  # as GPT-2 begins documents
    if source.pad_token in (None, source.eos_token):  # where padding is masked, no end would be learnt
        changes["pad_token"] = PAD_TOKEN
        needed.append(PAD_TOKEN)
    if not source.chat_template:
        changes["chat_template"] = CHAT_TEMPLATE
        needed += CHAT_TOKENS
    special = {token.content for token in source.added_tokens_decoder.values() if token.special}
    for token in needed:
        if token in before and token not in special:
            raise CheckpointError(
                f"{place}: the vocabulary uses {token} for something else (token {before[token]:,} is no special "
                "token), so Arlow could not tell the two apart"
            )
    new = [token for token in needed if token not in before]
    backend = Tokenizer.from_str(source.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in new])
    # A processor of images pads on the left, whatever side the source had.
    roles = {name: getattr(source, name) for name in (*changes, "padding_side")}
    tokenizer = plain_tokenizer(source, place, backend, changes)
    after = tokenizer.get_vocab()
    additions = Additions(vocab_size, {token: after[token] for token in new}, roles)
    refuse_shared_ids(before, additions.tokens, place)
    tokenizer.init_kwargs[RECORD] = additions.record()
    assert before.items() <= after.items() and after.keys() - before.keys() == set(new)
    return tokenizer, additions


def refuse_other_rows(vocab: dict[str, int], vocab_size: int, place: Path) -> None:
    """Raises CheckpointError unless every token has an embedding row, and nearly every row a token."""
    refuse_missing_rows(vocab, vocab_size, place)
    count = len(vocab)
    if vocab_size - count > vocab_size * LARGEST_SPARE_SHARE:
        raise CheckpointError(
            f"{place}: the tokenizer has {count:,} tokens for {vocab_size:,} embedding rows, too few to be the one "
            "that the model was trained with; take that one"
        )


def refuse_missing_rows(vocab: dict[str, int], vocab_size: int, place: Path) -> None:
    """Raises CheckpointError unless every token has an embedding row."""
    count, highest = len(vocab), max(vocab.values(), default=-1)
    if highest >= vocab_size:
        last = visible(max(vocab, key=lambda token: vocab[token]))
        raise CheckpointError(
            f"{place}: the tokenizer has {count:,} tokens up to id {highest:,} ({last:.40}) and the model only "
            f"{vocab_size:,} embedding rows; take the tokenizer that the model was trained with"
        )


def refuse_shared_ids(before: dict[str, int], new: dict[str, int], place: Path) -> None:
    """Raises CheckpointError where ids have gaps: new ids follow the number of tokens, and so meet used ones."""
    word_of_id = {index: token for token, index in before.items()}
    for token, index in new.items():
        if index in word_of_id:
            raise CheckpointError(
                f"{place}: the vocabulary has {len(before):,} tokens with ids up to {max(word_of_id):,}, so {token} "
                f"would share id {index:,} with {visible(word_of_id[index]):.40}; give the ids between a token each in "
                "tokenizer.json"
            )


def without_additions(tokenizer: PreTrainedTokenizerBase, place: Path) -> tuple[TokenizersBackend, int | None]:
    """The tokenizer without what the import added, and how many embedding rows its model had; None: all that there are.

    Tokens that were added since then stay, and move up to ids that are free now. One that Arlow trained itself comes
    back without Arlow's code.
    """
    record = tokenizer.init_kwargs.get(RECORD)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for step in ("normalizer", "pre_tokenizer"):
        spec[step] = without_quotes(spec[step])
    if record is None:
        return plain_tokenizer(tokenizer, place, Tokenizer.from_str(json.dumps(spec))), None
    added, roles, rows = read_record(record, place)
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in added]
    return plain_tokenizer(tokenizer, place, Tokenizer.from_str(json.dumps(spec)), roles), rows


def read_record(record: Any, place: Path) -> tuple[list[str], dict[str, str | None], int]:
    """Tokens, roles and embedding rows of the import's record. Raises CheckpointError if it is damaged."""
    match record:
        case {"tokens": [*tokens], "roles": dict(roles), "vocab_size": int(rows)} if (
            all(isinstance(token, str) for token in tokens)
            and roles.keys() <= {"bos_token", "pad_token", "chat_template", "padding_side"}
            and roles.get("padding_side", "left") in ("left", "right")
            and all(value is None or isinstance(value, str) for value in roles.values())
            and rows > 0
        ):
            return tokens, roles, rows
    raise CheckpointError(f"{place / 'tokenizer_config.json'}: {RECORD!r} is damaged; {COPY_AGAIN}")


def without_quotes(step: Any) -> Any:
    """A tokenizer's normalizer or pre-tokenizer as it was before `drop_quotes`."""
    match step:
        case {"pattern": {"String": string}} if string == QUOTE:
            return None
        case {"type": "Sequence", "normalizers": [{"pattern": {"String": string}}, *rest]} if string == QUOTE:
            return rest[0] if len(rest) == 1 else {**step, "normalizers": rest}
        case {"type": "Sequence", "pretokenizers": [{"pattern": {"String": string}}, *rest]} if string == QUOTE:
            return rest[0] if len(rest) == 1 else {**step, "pretokenizers": rest}
    return step
