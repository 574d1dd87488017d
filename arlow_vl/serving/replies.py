"""Answers in the formats of OpenAI's chat and completion endpoints."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from arlow_vl.data.prompts import decode_token, token_bytes
from arlow_vl.serving.events import Finished, Piece, TokenLogprob

Values = dict[str, Any]


class Reply:
    """One answer on its way to a client: as chunks of a stream, or whole."""

    def __init__(
        self, model: str, tokenizer: Any, *, is_chat: bool, has_logprobs: bool, has_token_ids: bool = False
    ) -> None:
        self._tokenizer, self._is_chat = tokenizer, is_chat
        self._has_logprobs, self._has_token_ids = has_logprobs, has_token_ids
        prefix, kind = ("chatcmpl", "chat.completion") if is_chat else ("cmpl", "text_completion")
        self._head: Values = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Piece], end: Finished) -> Values:
        """Returns the body of an answer that is not streamed."""
        text, tokens = "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens]
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, **content, **self._of_tokens(tokens), "finish_reason": end.reason}
        return {**self._head, "choices": [choice], "usage": usage(end)}

    def first_chunk(self) -> Values | None:
        """Returns the chunk of a chat that names the role; None for a completion."""
        return self._chunk({"role": "assistant", "content": ""}, "", None) if self._is_chat else None

    def chunk(self, piece: Piece) -> Values:
        return self._chunk({"content": piece.text}, piece.text, None, piece.tokens)

    def last_chunk(self, end: Finished) -> Values:
        return self._chunk({}, "", end.reason)

    def usage_chunk(self, end: Finished) -> Values:
        return {**self._stream_head(), "choices": [], "usage": usage(end)}

    def _chunk(self, delta: Values, text: str, reason: str | None, tokens: Sequence[TokenLogprob] = ()) -> Values:
        content = {"delta": delta} if self._is_chat else {"text": text}
        choice = {"index": 0, **content, **self._of_tokens(tokens), "finish_reason": reason}
        return {**self._stream_head(), "choices": [choice]}

    def _stream_head(self) -> Values:
        return self._head | ({"object": "chat.completion.chunk"} if self._is_chat else {})

    def _of_tokens(self, tokens: Sequence[TokenLogprob]) -> Values:
        """Returns `logprobs` and, if they were asked for, `token_ids`, which is vLLM's name."""
        ids = {"token_ids": [one.token_id for one in tokens]} if self._has_token_ids else {}
        return {"logprobs": self._logprobs(tokens), **ids}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Values | None:
        if not self._has_logprobs:
            return None
        described = [
            self._token(one.token_id, one.logprob) | {"top_logprobs": [self._token(*top) for top in one.top]}
            for one in tokens
        ]
        return {"content": described, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Values:
        text = decode_token(self._tokenizer, token_id)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(token_bytes(self._tokenizer, token_id))}


def usage(end: Finished) -> Values:
    total = end.prompt_tokens + end.completion_tokens
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": total,
    }


def as_event(values: Values) -> bytes:
    """Returns one server-sent event."""
    return b"data: " + as_json(values) + b"\n\n"


def as_json(values: Values) -> bytes:
    return json.dumps(values, ensure_ascii=True, allow_nan=False).encode()


DONE = b"data: [DONE]\n\n"
