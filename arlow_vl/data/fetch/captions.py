"""Captions as names of things: equal but for case, articles and punctuation means the same thing."""

import re

ARTICLES = {"a", "an", "the"}


def caption_name(caption: str) -> str:
    """The name that images with (nearly) the same caption share: "A cat." and "cat" are both "caption:cat"."""
    words = re.findall(r"[^\W_]+", caption.lower())
    while len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return "caption:" + (" ".join(words) or caption.strip().lower())
