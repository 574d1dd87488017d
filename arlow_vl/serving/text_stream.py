"""Tokens decoded while they come: pieces of text that never change again, up to a stop text.

A token may hold a part of a character, or begin a stop text. Such text is held back until the next tokens decide:

    tokens   "Hel" "lo" "\\xe2\\x82" "\\xac" " E" "ND" ...     with the stop text "END"
    pieces   "Hel" "lo" ""         "€"    " "  and stopped
"""

from collections.abc import Sequence
from typing import Any

from arlow_vl.data.prompts import CUT_CHARACTER

CONTEXT = 8
"""Tokens of the prompt that are decoded in front: some decoders drop a space at the beginning of a text."""


class TextStream:
    """Decodes one answer, token by token."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.is_stopped = False
        """True once a stop text came; it is not part of the pieces, and nothing is added after it."""
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._end = 0, len(self._ids)  # these are decoded again, as context of the tokens after them
        self._held = ""

    def push(self, token_id: int) -> str:
        """Adds a token and returns the next piece of text, often empty."""
        if self.is_stopped:
            return ""
        self._ids.append(token_id)
        text = self._undecoded()
        if not text or text.endswith(CUT_CHARACTER):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return self._let_go(text)

    def rest(self) -> str:
        """Returns the text that was held back, once the answer has ended."""
        if self.is_stopped:
            return ""
        piece = self._let_go(self._undecoded())
        if not self.is_stopped:
            piece, self._held = piece + self._held, ""
        return piece

    def _undecoded(self) -> str:
        known = decode_plainly(self.tokenizer, self._ids[self._start : self._end])
        return decode_plainly(self.tokenizer, self._ids[self._start :])[len(known) :]

    def _let_go(self, text: str) -> str:
        """Returns the text up to an end that may begin a stop text, which is held back."""
        text = self._held + text
        places = [place for place in map(text.find, self.stop) if place >= 0]
        if places:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        begun = (size for size in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-size:]))
        kept = len(text) - next(begun, 0)
        self._held = text[kept:]
        return text[:kept]

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stop)


def decode_plainly(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decodes without special tokens, and without tidying spaces."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
