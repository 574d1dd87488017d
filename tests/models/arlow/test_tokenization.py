"""The two tokenizers: alike on everything, lossless, saved and loaded by each other; and their training."""

import logging
import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from arlow_vl.errors import DataError
from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.tokenization_arlow import PIECES, ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast, train_tokenizer, training_parts
from arlow_vl.models.arlow.vocabulary_arlow import BYTE_OF_CHARACTER, SPECIAL_TOKENS, byte_vocab

LICENSE = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")
WORLD = "中文字 привет мир ééé 🎉🎉 naïve  \n\n\n    aaaa ==== ---- 2024 it's I'll " * 3
ATOMS = [
    *SPECIAL_TOKENS,
    *("<|", "|>", "<", ">", "image", "<ima", "ge>", "<<image>", "<|im_start|<|im_start|>", "<|endoftext", "< image>"),
    *(" ", "  ", " " * 7, "\n", "\n\n", "\r\n", "\t", "\0", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\u3000"),
    *("'s", "'S", "'ll", "'RE", "'\u017f", "1", "123", "٣", "½", "word", " License", "e\u0301", "\u0301", "ß", "İ"),
    *(
        "中文",
        "。",
        "हिन्दी",
        "שלום",
        "🎉",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "❤\ufe0f",
        "\ufeff",
        "\ufffd",
        "\ue000",
        "\U000323b0",
    ),
]
# Stacked marks, emoji with skin or flag, look-alikes in one another, right to left, capital contractions, long runs.
ATOMS += [
    *(
        "e" + "\u0301" * 30,
        "\u0e19\u0e49\u0e33",
        "\U0001f44d\U0001f3fd",
        "\U0001f3f4\U000e0067\U000e007f",
        "\u202e",
        "\u200f",
    ),
    *("<|im_<|im_end|>start|>", "<<|pad|>image>", "<image", "image>", "<|image|>", "<|IM_END|>", "</image>", "|>"),
    *(
        "\u0645\u0631\u062d\u0628\u0627",
        "\u05d0\u05b7",
        "I'LL",
        "WE'VE",
        "DON'T",
        "'D",
        "9" * 30,
        "\u0661\u0662",
        "\u216f",
        "\u00b2",
    ),
    *(" " * 200, "\n" * 100, "\r", "\t" * 20, " \n" * 20, "\x0b\x0c\x1c\x1f", "\u2009" * 9, "\u200b", "\U000f0000"),
]
SURROGATES = ["\ud800", "\udfff", "\ud83d\ude00"]


def strings(count: int, *, atoms: list[str] = ATOMS, seed: int = 0) -> list[str]:
    """Texts out of atoms, arbitrary characters and runs of one ASCII character."""
    rng = random.Random(seed)
    characters = [*range(0xD800), *range(0xE000, 0x110000)]
    kinds = [
        lambda: rng.choice(atoms),
        lambda: chr(rng.choice(characters)),
        lambda: chr(rng.randrange(128)) * rng.randrange(1, 6),
    ]
    return ["".join(rng.choices(kinds, [6, 2, 2])[0]() for _ in range(rng.randrange(1, 25))) for _ in range(count)]


@pytest.fixture(scope="session")
def fast() -> ArlowTokenizerFast:
    return train_tokenizer([LICENSE, WORLD], 700)


@pytest.fixture(scope="session")
def folder(fast, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def slow(folder) -> ArlowTokenizer:
    return ArlowTokenizer.from_pretrained(folder)


@pytest.fixture(params=["slow", "fast"])
def tokenizer(request, folder):
    """Each of the two, fresh, so that a test may change it."""
    return (ArlowTokenizer if request.param == "slow" else ArlowTokenizerFast).from_pretrained(folder)


def assert_same_ids(slow, fast, texts: list[str], **options) -> None:
    for text, expected, ids in zip(
        texts, fast(texts, **options).input_ids, slow(texts, **options).input_ids, strict=True
    ):
        assert ids == expected, ascii(text)


@pytest.mark.parametrize("split", [False, True])
def test_both_give_the_same_ids(slow, fast, split):
    assert_same_ids(slow, fast, strings(2000, atoms=ATOMS + SURROGATES), split_special_tokens=split)


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
def test_both_give_the_same_ids_on_ten_thousand_strings(slow, fast, split):
    assert_same_ids(slow, fast, strings(10_000, atoms=ATOMS + SURROGATES, seed=1), split_special_tokens=split)


def test_long_runs_give_the_same_ids(slow, fast):
    assert_same_ids(slow, fast, ["=" * 20_001, " " * 20_001, "中文字" * 5000, LICENSE.replace(" ", "")])


@pytest.mark.parametrize("split", [False, True])
def test_decoding_gives_every_text_back(tokenizer, split):
    texts = strings(1000, seed=2)
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=split).input_ids
    assert tokenizer.batch_decode(ids) == texts


@pytest.mark.parametrize("skip", [False, True])
def test_both_decode_any_ids_alike(slow, fast, skip):
    rng = random.Random(3)
    rows = [[rng.randrange(len(fast) + 20) for _ in range(rng.randrange(1, 20))] for _ in range(2000)]
    decoded = fast.batch_decode(rows, skip_special_tokens=skip)
    assert slow.batch_decode(rows, skip_special_tokens=skip) == decoded
    assert any("\ufffd" in text for text in decoded)  # characters that were cut in two


def test_both_cut_every_character_alike(fast):
    planes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]  # beyond: only private use, so far
    characters = [chr(point) for point in planes]
    random.Random(4).shuffle(characters)
    text = "".join(characters)
    pieces = PIECES.findall(text)
    cut = fast.backend_tokenizer.pre_tokenizer[0]
    assert "".join(pieces) == text
    assert [piece for piece, _ in cut.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", " world"]),
        ("it's IT'S they'll", ["it", "'s", " IT", "'S", " they", "'ll"]),
        ("year 2024!", ["year", " ", "2", "0", "2", "4", "!"]),
        ("a   b", ["a", "  ", " b"]),
        ("end.\n\n  next", ["end", ".\n\n", " ", " next"]),
        ("f(x)  \n", ["f", "(x", ")", "  \n"]),
        ("中文。好", ["中文", "。好"]),
    ],
)
def test_pieces_are_those_of_qwen2(text, pieces):
    assert PIECES.findall(text) == pieces


def test_byte_characters_are_those_of_gpt2():
    assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert {character: BYTE_OF_CHARACTER[character] for character in "AĠĊ¡Ń"} == {
        "A": 65, "Ġ": 32, "Ċ": 10, "¡": 0xA1, "Ń": 0xAD,
    }  # fmt: skip


def test_lower_ranks_are_merged_first():
    vocab = byte_vocab()
    vocab |= {token: len(vocab) + place for place, token in enumerate(["bc", "ab", "lo", "low", "er"])}
    merges = [("b", "c"), ("a", "b"), ("l", "o"), ("lo", "w"), ("e", "r")]
    for kind in (ArlowTokenizer, ArlowTokenizerFast):
        assert kind(vocab, merges).tokenize("abc lower") == ["a", "bc", "Ġ", "low", "er"]


def test_special_tokens_have_their_published_ids(tokenizer):
    roles = ("unk", "bos", "eos", "pad", "mask", "image", "video")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [0, 1, 2, 3, 4, 7, 8]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(11))
    assert sorted(tokenizer.all_special_ids) == list(range(11))


def test_special_tokens_are_read_whole(tokenizer):
    text = "a<image>b" + "".join(SPECIAL_TOKENS)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [index for index in ids if index < 11] == [7, *range(11)]


def test_splitting_special_tokens_makes_them_plain_for_that_call(tokenizer):
    before = tokenizer("<image>").input_ids
    plain = tokenizer("<image>", split_special_tokens=True, add_special_tokens=False).input_ids
    assert 7 not in plain and tokenizer.decode(plain) == "<image>"
    assert before == tokenizer("<image>").input_ids == [1, 7]


def test_plain_text_never_gives_a_special_id(tokenizer):
    rows = tokenizer(strings(500, seed=5), add_special_tokens=False, split_special_tokens=True).input_ids
    assert min(map(min, rows)) >= len(SPECIAL_TOKENS)


def test_bos_comes_first_and_eos_never(tokenizer):
    plain = tokenizer("word", add_special_tokens=False).input_ids
    assert tokenizer("word").input_ids == [1, *plain]
    assert tokenizer("").input_ids == [1]


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
def test_leaving_bos_away_is_saved(tokenizer, loader, tmp_path):
    tokenizer.add_bos_token = False
    tokenizer.save_pretrained(tmp_path)
    assert 1 not in loader.from_pretrained(tmp_path)("word").input_ids
    assert loader.from_pretrained(tmp_path, add_bos_token=True)("word").input_ids[0] == 1


def test_a_lone_surrogate_is_read_as_the_replacement_character(tokenizer):
    assert tokenizer("a\ud800b").input_ids == tokenizer("a\ufffdb").input_ids
    assert tokenizer(["a\udfff"]).input_ids == tokenizer(["a\ufffd"]).input_ids


def test_ids_without_an_entry_decode_to_nothing(tokenizer):
    assert tokenizer.decode([len(tokenizer) + 5, *tokenizer("word").input_ids[1:]]) == "word"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_the_side_that_was_asked_for(tokenizer, side):
    batch = tokenizer(["License", "License License License"], padding=True, padding_side=side)
    short, pads = tokenizer("License").input_ids, len(batch.input_ids[1]) - len(tokenizer("License").input_ids)
    assert batch.input_ids[0] == ([3] * pads + short if side == "left" else short + [3] * pads)
    assert batch.attention_mask[0] == (
        [0] * pads + [1] * len(short) if side == "left" else [1] * len(short) + [0] * pads
    )


def test_offsets_give_the_text_of_each_token(fast):
    text = "The License <image>  end of\n"
    batch = fast(text, return_offsets_mapping=True, add_special_tokens=False)
    for token, (start, end) in zip(batch.tokens(), batch.offset_mapping, strict=True):
        assert fast.convert_tokens_to_string([token]) == text[start:end]


def test_offsets_cover_every_text(fast):
    for text in strings(300, seed=6):
        batch = fast(text, return_offsets_mapping=True, add_special_tokens=False)
        reached = 0
        for token, (start, end) in zip(batch.tokens(), batch.offset_mapping, strict=True):
            assert start <= reached <= end and start < end, ascii(text)
            reached = end
            written = fast.convert_tokens_to_string([token])
            assert written == text[start:end] or "\ufffd" in written, ascii(text)
        assert reached == len(text)


def test_offsets_of_the_bytes_of_a_character_are_its_own(fast):
    offsets = fast("\U0001f9ea", return_offsets_mapping=True, add_special_tokens=False).offset_mapping
    assert len(offsets) > 1 and set(offsets) == {(0, 1)}


def test_a_pickled_tokenizer_gives_the_same_ids(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer))(LICENSE).input_ids == tokenizer(LICENSE).input_ids


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
def test_each_loads_what_the_other_saved(tokenizer, loader, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja"} <= {
        p.name for p in tmp_path.iterdir()
    }
    loaded = loader.from_pretrained(tmp_path)
    assert loaded(WORLD).input_ids == tokenizer(WORLD).input_ids
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
def test_added_tokens_survive_saving(tokenizer, loader, tmp_path):
    tokenizer.add_tokens(["<point>"])
    tokenizer.save_pretrained(tmp_path)
    assert loader.from_pretrained(tmp_path)("a<point>").input_ids[-1] == 700


def test_the_fast_one_saves_the_file_of_the_library(folder):
    assert (folder / "tokenizer.json").is_file()


def test_the_slow_one_leaves_no_outdated_library_file(fast, tmp_path):
    fast.save_pretrained(tmp_path)
    ArlowTokenizer().save_pretrained(tmp_path)
    assert len(ArlowTokenizerFast.from_pretrained(tmp_path)) == len(byte_vocab())


# Transformers 5 reads both names as the fast tokenizer's, and takes no notice of `use_fast`.
@pytest.mark.parametrize("use_fast", [False, True])
@pytest.mark.parametrize("with_model", [False, True])
def test_auto_tokenizer_finds_what_either_saved(tokenizer, with_model, use_fast, tmp_path):
    import arlow_vl.models.auto  # noqa: F401

    tokenizer.save_pretrained(tmp_path)
    if with_model:
        ArlowConfig(vocab_size=700).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, use_fast=use_fast)
    assert type(loaded) is ArlowTokenizerFast and loaded(WORLD).input_ids == tokenizer(WORLD).input_ids


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
def test_loading_warns_of_nothing(folder, loader, monkeypatch, caplog, recwarn):
    monkeypatch.setattr(logging.getLogger(transformers.__name__), "propagate", True)
    loader.from_pretrained(folder)("text")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not recwarn.list


def test_training_gives_as_many_entries_as_asked(fast):
    assert len(fast) == fast.vocab_size == 700
    assert list(fast.convert_ids_to_tokens(range(267))) == list(byte_vocab())


def test_training_does_not_depend_on_the_order_of_texts(fast):
    again = train_tokenizer(iter([WORLD, LICENSE]), 700)
    assert again.backend_tokenizer.to_str() == fast.backend_tokenizer.to_str()


def test_training_never_holds_all_the_text():
    texts = ("".join(f"word{number} {line}\n" for line in range(5000)) for number in range(60))
    tracemalloc.start()
    train_tokenizer(texts, 300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 60_000  # of sixty texts of about 60,000 bytes


def test_long_texts_are_cut_where_no_piece_is():
    text = (LICENSE + "\n\n\n   indented\r\n\r\n" + WORLD) * 20
    parts = list(training_parts([text, ""]))
    assert len(parts) > 2 and "".join(parts) == text
    assert [piece for part in parts for piece in PIECES.findall(part)] == PIECES.findall(text)


def test_the_smallest_vocabulary_encodes_every_text():
    tokenizer = train_tokenizer([LICENSE], 267)
    assert tokenizer.decode(tokenizer(WORLD, add_special_tokens=False).input_ids) == WORLD


def test_a_text_that_gives_fewer_entries_is_reported(capsys):
    tokenizer = train_tokenizer(["abab"], 300)
    assert len(tokenizer) == 268
    assert capsys.readouterr().out == "the text gave 268 tokenizer entries, not the 300 asked for\n"


@pytest.mark.parametrize("size", [-1, 0, 266])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size):
    with pytest.raises(ValueError, match=f"at least 267.*got {size}"):
        train_tokenizer([LICENSE], size)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_training_without_text_is_refused(texts):
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, 300)


def test_training_on_one_string_is_refused():
    with pytest.raises(ValueError, match="put it into a list"):
        train_tokenizer(LICENSE, 300)
