"""Languages of samples: told where the model is sure, and what to install where there is none."""

import sys

import pytest

from arlow_vl.data import languages
from arlow_vl.data.languages import format_languages, languages_of, words_of
from arlow_vl.data.samples import Sample, Text, about_images, caption_text

WORDS = {
    "en": ["A man riding a wave on a surfboard.", "He is wearing a black suit and the sea is rough."],
    "de": ["Ein Mann reitet auf einer Welle.", "Er trägt einen schwarzen Anzug, und das Meer ist rau."],
    "fr": ["Un homme surfe sur une vague.", "Il porte une combinaison noire et la mer est agitée."],
}


def sample_of(*captions: str) -> Sample:
    return Sample("0", (b"image",), tuple(map(caption_text, captions)))


@pytest.fixture
def _no_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._identifier.cache_clear()
    yield
    languages._identifier.cache_clear()


def test_the_words_of_a_sample_are_those_of_all_its_texts():
    document = Text("document", document=({"type": "text", "text": "one"}, {"type": "image"}))
    question = Text("question", about_images(1, question="two?", answer="three"))
    assert words_of(Sample("0", (b"",), (document, question, caption_text("four")))) == "one\ntwo?\nthree\nfour"


@pytest.mark.usefixtures("_no_model")
def test_without_the_model_it_is_said_what_to_install():
    assert languages_of([sample_of("A fox.")]) is None
    assert format_languages(None) == "not told; pip install 'arlow-vl[languages]'"


def test_samples_are_counted_by_language_and_what_nobody_can_tell_is_said_so():
    pytest.importorskip("py3langid", reason="it is in the extra 'languages'")
    samples = [*(sample_of(*words) for words in WORDS.values()), sample_of(*WORDS["en"]), sample_of("ok")]
    found = languages_of(samples)
    assert found == {"en": 2, "de": 1, "fr": 1, "und": 1}
    assert format_languages(found) == "en 2, de 1, fr 1, not sure 1"
