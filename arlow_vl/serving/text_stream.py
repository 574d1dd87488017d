"""Tokens as text while they come: pieces that never change again, up to a text at which the answer ends.

A token may hold a part of a character, or begin a stop text. Such a piece is held back until what follows decides:

    tokens   "Hel" "lo" "\\xe2\\x82" "\\xac" " E" "ND" ...     with the stop text "END"
    pieces   "Hel" "lo" ""         "€"    " "  and stopped
"""

from collections.abc import Sequence
from typing import Any

from arlow_vl.data.prompts import CUT_CHARACTER

CONTEXT = 8
"""Tokens of the prompt that are decoded in front: some decoders drop the space with which a text begins."""


class TextStream:
    """The text of one answer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.is_stopped = False
        """A stop text came; it is no part of the pieces, and nothing is added any more."""
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._end = 0, len(self._ids)  # those between are decoded once more, in front of what is not yet
        self._held = ""

    def push(self, token_id: int) -> str:
        """The next piece, often empty."""
        if self.is_stopped:
            return ""
        self._ids.append(token_id)
        text = self._undecoded()
        if not text or text.endswith(CUT_CHARACTER):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return self._let_go(text)

    def rest(self) -> str:
        """What was held back, once the answer has ended."""
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
        """All but an end that may begin a stop text."""
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
    """Text without special tokens, no space of it tidied away."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
