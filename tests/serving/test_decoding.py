"""Decoding options: what is out of range is refused in a sentence, and `generate` gets what was asked."""

import math

import pytest

from arlow_vl.serving.decoding import Decoding


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is at least 1, got 0"),
        ({"num_beams": 65}, "num_beams is from 1 to 64, got 65"),
        ({"temperature": -1}, "temperature is from 0 to 2, got -1"),
        ({"temperature": 9}, "temperature is from 0 to 2, got 9"),
        ({"temperature": math.nan}, "temperature is from 0 to 2, got nan"),
        ({"top_p": 0}, "top_p is above 0, got 0"),
        ({"top_p": 1.5}, "top_p is from 0 to 1, got 1.5"),
        ({"top_k": -1}, "top_k is at least 0, got -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is from 0.01 to 100, got 0"),
        ({"seed": -1}, "seed is from 0 to"),
        ({"seed": 2**64}, "seed is from 0 to"),
        ({"num_beams": 2, "temperature": 1}, "num_beams above 1 searches and temperature above 0 draws"),
        ({"stop": ("a", "")}, "a stop text is empty"),
    ],
)
def test_what_is_out_of_range_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Decoding(**options)


def test_whole_numbers_are_taken_where_fractions_are_allowed():
    settings = Decoding(temperature=1, top_p=1, repetition_penalty=2).generate_settings()
    found = [settings[name] for name in ("temperature", "top_p", "repetition_penalty")]
    assert found == [1, 1, 2] and all(type(value) is float for value in found)


def test_a_model_folder_whose_own_settings_sample_is_still_asked_greedily():
    settings = Decoding().generate_settings()
    assert settings["do_sample"] is False and settings["temperature"] is settings["top_p"] is settings["top_k"] is None
    assert Decoding(temperature=0.5).generate_settings()["do_sample"] is True
