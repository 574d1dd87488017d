"""Token ids become text piece by piece, as soon as no later token can change it, up to a stop text."""

from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class TextStream:
    """The pieces of one answer; together they are what the tokenizer makes of all its ids, cut at a stop text.

    Tokens are decoded with those of the piece before, since some decoders drop the space in front of a text:

    >>> stream = TextStream(tokenizer, stop=("\\n\\n",))
    >>> "".join(stream.push(token) for token in ids) + stream.rest()
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._context = self._read = 0  # ids from `_context` on are decoded; those up to `_read` are text already
        self._held = ""
        self.is_stopped = False
        """True behind a stop text."""

    def push(self, token_id: int) -> str:
        """What can be shown now."""
        self._ids.append(token_id)
        decoded = self._decode(self._context, len(self._ids))
        if decoded.endswith(UNFINISHED):
            return ""
        self._held += decoded[len(self._decode(self._context, self._read)) :]
        self._context, self._read = self._read, len(self._ids)
        return self._release()

    def rest(self) -> str:
        """What was held back, where the answer ends without a stop text."""
        if self.is_stopped:
            return ""
        written = self._decode(self._context, len(self._ids))[len(self._decode(self._context, self._read)) :]
        self._context = self._read = len(self._ids)
        self._held += written
        shown = self._release()
        held, self._held = self._held, ""
        return shown + ("" if self.is_stopped else held)

    def _decode(self, start: int, end: int) -> str:
        ids = self._ids[start:end]
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _release(self) -> str:
        """The held text up to the first stop text, or without an end that may become one."""
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        kept = max((_begun(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)
