"""Languages of texts by py3langid: a model of 139 languages in 5 MB, which does not say where it is not sure."""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from arlow_vl.data.samples import Sample

LEAST_CONFIDENCE = 0.5
MOST_CHARACTERS = 2000
"""Characters of a sample that are looked at; more do not change the result."""
NOT_SURE, NO_LANGUAGE = "und", "zxx"
"""Codes of ISO 639."""
INSTALL = "pip install 'arlow-vl[languages]'"


def languages_of(samples: Iterable[Sample]) -> dict[str, int] | None:
    """Number of samples by ISO 639 code, the commonest first; None where py3langid is not installed.

    A sample has one language, that of all its words together: those of one caption are often too few to tell.
    """
    identifier = _identifier()
    if identifier is None:
        return None
    found = Counter(identifier.classify(words_of(sample))[0] for sample in samples)
    return dict(found.most_common())


def words_of(sample: Sample) -> str:
    """Returns the beginning of the sample's texts."""
    pieces = []
    for text in sample.texts:
        for content in (list(text.document), *(message["content"] for message in text.messages)):
            parts = [{"text": content}] if isinstance(content, str) else content
            pieces += [part["text"] for part in parts if "text" in part]
    return "\n".join(pieces)[:MOST_CHARACTERS]


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # pyrefly: ignore[missing-import]
    except ModuleNotFoundError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE)


def format_languages(languages: dict[str, int] | None) -> str:
    """`en 812, de 3, not sure 40`, or what to install."""
    if languages is None:
        return f"not told; {INSTALL}"
    names = {NOT_SURE: "not sure", NO_LANGUAGE: "no language"}
    return ", ".join(f"{names.get(code, code)} {count:,}" for code, count in languages.items())
