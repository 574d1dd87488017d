import pytest

from arlow_vl.printing import number_of, print_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\rc\td\x00", r"a\nb\rc\td\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202efdp.exe\u2069", r"\u202efdp.exe\u2069"),
        ("\u200b\ufeff\u2028", r"\u200b\ufeff\u2028"),
        ("\udcff.png", r"\udcff.png"),  # a name that is no UTF-8, as Python holds it
        ("\U000e0041", r"\U000e0041"),  # an invisible tag letter
    ],
)
def test_characters_that_act_are_shown_as_escapes(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("text", ["naïve café.jpg", "日本語　の 写真", "фото", "🦊", r"C:\new\table", "a\xa0b"])
def test_every_other_character_stays_as_it_is(text):
    assert visible(text) == text


def test_a_line_is_one_line(capsys):
    print_line("a\nb")
    assert capsys.readouterr().out == "a\\nb\n"


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1234567, "1,234,567 images")]
)
def test_a_count_has_its_noun_in_the_right_number(count, told):
    assert number_of(count, "image") == told
