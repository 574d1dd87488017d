"""Captions as names of things: captions that differ in case, articles and punctuation alone name the same thing."""

import re

ARTICLES = {"a", "an", "the"}


def caption_name(caption: str) -> str:
    """Returns the name that images with (nearly) the same caption share: "A cat." and "cat" are both "caption:cat"."""
    words = re.findall(r"[^\W_]+", caption.lower())
    while len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return "caption:" + (" ".join(words) or caption.strip().lower())
