"""Conversations as token ids, by the chat template of the model folder; training and evaluation both ask through these.

A conversation is a list of messages as transformers knows them; docs/prompts.md shows what becomes of one.
"""

from bisect import bisect
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from arlow_vl.data.samples import Message, Part
from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.chat_arlow import IMAGE_TOKEN, control_tokens, plain_chat, render_chat, render_plain_chat

IGNORED = -100
CUT_CHARACTER = "\ufffd"  # what a decoder gives for bytes that are no whole character


def about_image(question: str | None = None, answer: str | None = None, *, images: int = 1) -> list[Message]:
    """A user's turn of an image or more and, unless a caption is asked for, a question; then the answer, if any."""
    content = [{"type": "image"}] * images + ([] if question is None else [{"type": "text", "text": question}])
    answers = [] if answer is None else [{"role": "assistant", "content": answer.strip()}]
    return [{"role": "user", "content": content}, *answers]


def without_images(messages: Sequence[Message]) -> list[Message]:
    """Returns the conversation without its images."""
    return [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def encode_prompt(tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the model is to answer."""
    return encode_rendered(tokenizer, render_chat(tokenizer, messages, add_generation_prompt=True))


def encode_messages(
    tokenizer, messages: Sequence[Message], *, max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and labels that count each answer of the assistant and the token that ends it.

    An answer is what follows the ids of its own prompt, up to the first special token, so the labels are right for
    any chat template under which a conversation begins with its own prompts. Tokens over `max_length` are cut, later
    turns are not looked at, and a cut answer has no end, as the model should not learn to stop there.

    Raises:
        ValueError: the template changes the prompt when the answer comes or ends no answer, or `max_length` leaves no
            room for an answer or would cut an image off.
    """
    chat, _, _, _ = plain_chat(tokenizer, list(messages))
    text = render_plain_chat(tokenizer, chat, add_generation_prompt=False)
    ids, borders = _ids_and_borders(tokenizer, text)
    labels = [IGNORED] * len(ids)
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ends = set(tokenizer.convert_tokens_to_ids(list(control_tokens(tokenizer)))) - {image}
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns:
        asked = render_plain_chat(tokenizer, chat[:turn], add_generation_prompt=True)
        prompt = _ids_of_prompt(tokenizer, asked, text, ids, borders)
        if ids[: len(prompt)] != prompt:
            raise ValueError(
                "the chat template writes another prompt once the answer is there, so the model would be trained on "
                f"what it is never asked: {tokenizer.decode(prompt)[-60:]!r} begins no such conversation"
            )
        end = next((place for place in range(len(prompt), len(ids)) if ids[place] in ends), None)
        if end is None:
            raise ValueError("the chat template writes no special token after an answer, so the model could not stop")
        labels[len(prompt) : end + 1] = [IGNORED if i == image else i for i in ids[len(prompt) : end + 1]]
        if max_length is not None and end >= max_length:
            break
    if max_length is not None and len(ids) > max_length:
        _refuse_cut(tokenizer, ids, labels, max_length)
    return ids[:max_length], labels[:max_length]


def encode_document(tokenizer, parts: Sequence[Part], *, max_length: int | None = None) -> tuple[list[int], list[int]]:
    """Ids of a document of text and images between bos and eos, and labels that count all but bos and the images.

    Tokens over `max_length` are cut, eos too. Raises ValueError if that leaves nothing to learn or cuts an image off.
    """
    bos, eos = document_ends(tokenizer)
    image, ids = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), [bos]
    for part in parts:
        ids += [image] if part["type"] == "image" else plain_ids(tokenizer, [part["text"]])[0]
    ids.append(eos)
    labels = [IGNORED, *(IGNORED if i == image else i for i in ids[1:])]
    if max_length is not None and len(ids) > max_length:
        _refuse_cut(tokenizer, ids, labels, max_length)
    return ids[:max_length], labels[:max_length]


def document_ends(tokenizer) -> tuple[int, int]:
    """Returns the tokens that documents begin and end with: bos and eos, or eos twice without a bos, as GPT-2's do.

    Raises:
        CheckpointError: the tokenizer has no eos.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise CheckpointError(
            "the tokenizer names no eos_token, so no document would end; name one in its tokenizer_config.json"
        )
    return eos if bos is None else bos, eos


def plain_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of texts as they are: one that spells a special token stays text."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decode_token(tokenizer, token_id: int) -> str:
    """Returns the text of one token with its leading spaces: sentencepiece's decoders drop one where a text begins."""
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    spelled = str(tokenizer.convert_ids_to_tokens(token_id))
    spaces = len(spelled) - len(spelled.lstrip("\u2581"))
    return " " * spaces + text.lstrip(" ") if spaces else text


def token_bytes(tokenizer, token_id: int) -> bytes:
    """Returns the UTF-8 bytes of one token, which may be only a part of a character."""
    text, spelled = decode_token(tokenizer, token_id), str(tokenizer.convert_ids_to_tokens(token_id))
    if CUT_CHARACTER not in text:
        return text.encode()
    if spelled.startswith("<0x"):  # sentencepiece's <0xE2>
        return bytes.fromhex(spelled[3:-1])
    letters = _byte_of_letter()
    return bytes(map(letters.__getitem__, spelled)) if letters.keys() >= set(spelled) else text.encode()


@cache
def _byte_of_letter() -> dict[str, int]:
    """Maps the letters in which byte-level BPE spells bytes to these bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def stop_token_ids(tokenizer) -> list[int]:
    """Returns the tokens after which the model has answered: eos, and what the chat template writes after an answer."""
    _, labels = encode_messages(tokenizer, [*about_image("a"), {"role": "assistant", "content": "b"}])
    return list(dict.fromkeys([tokenizer.eos_token_id, [label for label in labels if label != IGNORED][-1]]))


def encode_rendered(tokenizer, text: str) -> list[int]:
    """Ids of a rendered chat, with bos in front once where the tokenizer or the template wants it."""
    return tokenizer(text, add_special_tokens=not _has_bos(tokenizer, text))["input_ids"]


def _has_bos(tokenizer, text: str) -> bool:
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


class _Border(NamedTuple):
    """A control token that a rendered chat spells: tokenizers cut a text there before all else, and begin anew."""

    start: int
    """Its first character."""
    end: int
    place: int
    """Position of its id."""


def _ids_and_borders(tokenizer, text: str) -> tuple[list[int], list[_Border]]:
    """Returns the ids of `encode_rendered`, and borders: none where the tokenizer has no offsets or appends a token."""
    if not tokenizer.is_fast:
        return encode_rendered(tokenizer, text), []
    encoded = tokenizer(text, add_special_tokens=not _has_bos(tokenizer, text), return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not ids or not offsets[-1][1]:
        return ids, []
    added = tokenizer.added_tokens_decoder.items()
    cutting = {index: token.content for index, token in added if token.special and not token.normalized}
    return ids, [
        _Border(start, end, place)
        for place, (index, (start, end)) in enumerate(zip(ids, offsets, strict=True))
        if text[start:end].strip() == cutting.get(index)  # not where it stands for an unknown character, or a byte
    ]


def _ids_of_prompt(tokenizer, prompt: str, text: str, ids: list[int], borders: list[_Border]) -> list[int]:
    """Returns the ids of `encode_rendered` for a prompt.

    Where the whole text begins with the prompt, only what follows the prompt's last border is tokenised: otherwise each
    turn would tokenise all turns before it again.
    """
    number = bisect(borders, len(prompt), key=lambda border: border.end) if text.startswith(prompt) else 0
    if not number:
        return encode_rendered(tokenizer, prompt)
    start, _, place = borders[number - 1]
    return ids[:place] + tokenizer(prompt[start:], add_special_tokens=False)["input_ids"]


def _refuse_cut(tokenizer, ids: Sequence[int], labels: Sequence[int], max_length: int) -> None:
    words = repr(tokenizer.decode(ids, skip_special_tokens=True)[:60])
    first = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
    if first >= max_length:
        raise ValueError(f"the prompt has {first} tokens and leaves no room in max_length {max_length}: {words}")
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image in ids[max_length:]:
        raise ValueError(f"max_length {max_length} would cut an image off a conversation of {len(ids)} tokens: {words}")
