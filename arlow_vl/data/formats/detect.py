"""Detection of the format of a source: finds its reader, or says in a sentence why there is none."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from arlow_vl.data.file_names import globbed
from arlow_vl.data.formats import coco, conversations, image_folder, karpathy, tables, vqa, webdataset
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import LINE_SUFFIXES
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.member_names import IMAGE_SUFFIXES
from arlow_vl.data.remote import (
    beside,
    hold,
    is_address,
    is_file_address,
    listed,
    name_of,
    path_of_file_address,
    ranges,
    without_secrets,
)
from arlow_vl.data.remote_cache import Held, naming_addresses
from arlow_vl.data.samples import Sample
from arlow_vl.data.shard_faults import faults_at_addresses
from arlow_vl.data.text import MAX_LINE_BYTES, open_regular, refuse_utf16
from arlow_vl.data.text_files import shown_source
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.near_names import did_you_mean_file

Reader = Callable[[list[Path], ImageRoot, Tally], Iterator[Sample]]
FORMATS: dict[str, Reader] = {
    "webdataset": webdataset.read,
    "captions": image_folder.read_table,
    "sidecars": image_folder.read_sidecars,
    "coco": coco.read,
    "vqa": vqa.read_vqa,
    "gqa": vqa.read_gqa,
    "textvqa": vqa.read_textvqa,
    "vizwiz": vqa.read_vizwiz,
    "pope": vqa.read_pope,
    **karpathy.READERS,
    "conversations": conversations.read,
    "parquet": tables.read,
}
HEAD_BYTES = 2**18  # that an annotation file is known by, beside what is inside its long strings
LONG_STRING = 1024  # bytes, as an image in a data: URL is, and no key
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
LOOKED_FOR = (
    ".tar shards, .parquet or .arrow files, a dataset saved with save_to_disk, a captions.csv or metadata.csv (.tsv, "
    ".jsonl), annotation files (.json, .jsonl), or images with a .txt beside each"
)
ANNOTATIONS = (
    "messages or conversations, COCO's images with annotations, Karpathy's splits, questions of VQAv2, OK-VQA, GQA, "
    "TextVQA, VizWiz or POPE, or records with an image and a text or caption"
)
NAME_IMAGES = ("captions", "coco", "vqa", "gqa", "textvqa", "vizwiz", "pope", *karpathy.READERS)
"""Formats whose records say where their images lie."""
SHARE_IMAGES = ("gqa", "textvqa", "vizwiz", "pope", *karpathy.READERS)
"""Formats whose files all ask about the same images."""
KIND_OF_FORMAT = {"webdataset": "tars", "parquet": "parquet", "captions": "table"}
"""Kind of the files of a folder that a format reads, where they are no annotations."""
# Signs of a format in the first bytes of a JSON, in the order in which they are tried.
SIGNS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("conversations", re.compile(rb'"(messages|conversations)"\s*:\s*\[|"images"\s*:\s*\[\s*"')),
    ("vqa", re.compile(rb'"questions"\s*:\s*\[')),
    ("vizwiz", re.compile(rb'\A\s*\[.*"answer_confidence"\s*:', re.DOTALL)),
    ("vqa answers", re.compile(rb'"(multiple_choice_answer|answer_confidence|question_type)"\s*:')),
    ("gqa", re.compile(rb'"imageId"\s*:')),
    ("textvqa", re.compile(rb'"data"\s*:\s*\[.*"question"\s*:', re.DOTALL)),
    ("karpathy", re.compile(rb'"sentences"\s*:\s*\[.*"raw"\s*:', re.DOTALL)),
    ("coco", re.compile(rb'"images"\s*:\s*\[\s*\{|"annotations"\s*:\s*\[.*"caption"\s*:', re.DOTALL)),
    ("conversations", re.compile(rb'"texts"\s*:\s*\[|"question"\s*:')),
    ("pope", re.compile(rb'"label"\s*:\s*"(yes|no)"')),
    ("captions", re.compile(rb'"(text|caption)"\s*:')),
)


@dataclass
class Source:
    """Samples of one format. `tally` counts what the last `iterate` used and left out."""

    format: str
    files: list[Path]
    """Every file that its texts depend on; images have their own place in the samples."""
    images: ImageRoot
    tally: Tally = field(default_factory=Tally)
    held: tuple[Held, ...] = ()
    """Cached files that came from addresses, held so that they stay in the cache."""

    def iterate(self) -> Iterator[Sample]:
        """Yields the samples in an order that depends on the files alone, from the first each time.

        Raises:
            DataError: a file is missing or is not what its format wants.
        """
        self.tally = Tally()
        samples = FORMATS[self.format](self.files, self.images, self.tally)
        return self._with_addresses(samples) if self.held else samples

    def _with_addresses(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples; files with a fault leave the cache when this is closed, and all of which nothing can be used."""
        with naming_addresses(self.held):
            yield from samples
        faults = self.tally.faults
        faults[:] = faults_at_addresses(faults, self.held)
        for held in self.held if not self.tally.samples else ():
            held.is_damaged = True

    def close(self) -> None:
        """Releases the files in the cache, which may then leave it."""
        for held in self.held:
            held.close()


def open_source(
    path: str | Path, *, images: str | Path | None = None, format: str | None = None
) -> Source:  # the name that pandas, datasets and the command line use
    """Opens the source at a file, a folder, a glob, a range as `{000..099}`, or an address (see `data.remote`).

    Args:
        images: The folder that image paths start from; None: the folder of the annotations. No image outside is read.
        format: One of FORMATS; None: it is detected.

    Raises:
        DataError: nothing is there, or no known format.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"no format is called {visible(repr(format))}; write one of {', '.join(FORMATS)}")
    if is_file_address(path):
        path = path_of_file_address(str(path))
    addresses = files_at_address(str(path)) if is_address(path) else []
    held = tuple(map(hold, addresses))
    files = [one.path for one in held] or _files_at(Path(path), format)
    with naming_addresses(held):
        found = format or _format_of(files, path)
    if found == "vqa" and len(addresses) == 1:
        held += tuple(map(hold, _annotations_at(addresses[0])))
        files = [one.path for one in held]
    if found == "vqa":
        with naming_addresses(held):
            files = _questions_and_answers(files)
    if held and images is None and found in NAME_IMAGES:
        raise DataError(
            f"{without_secrets(str(path))}: its images are files; name the folder that their paths start from"
        )
    if images is None:
        return Source(found, files, _root_of(Path(path), files, found), held=held)
    if found == "sidecars" and Path(images).resolve() != Path(_root_of(Path(path), files, found).root).resolve():
        raise DataError(f"{visible(str(path))}: its captions lie beside their images; name no other folder of images")
    if not Path(images).is_dir():
        raise DataError(f"{visible(str(images))}: no such folder of images; name the one that image paths start from")
    return Source(found, files, ImageRoot(images), held=held)


def files_at_address(address: str) -> list[str]:
    """The addresses of files of one kind that one stands for."""
    addresses = listed(address)
    _refuse_kinds(without_secrets(address), [Path(name_of(one)) for one in addresses])
    return addresses


def is_there(path: Path) -> bool:
    """Returns True if anything lies at a path, a glob or a range; one file of a range is enough."""
    return any(globbed(one) for one in ranges(str(path)))


def _root_of(path: Path, files: list[Path], format: str) -> ImageRoot:
    """Returns the folder of the annotations as the root; in a glob over several folders each file has its own."""
    if path.is_dir() or len({file.parent for file in files}) == 1 or format == "vqa":
        return ImageRoot(path if path.is_dir() else files[0].parent)
    if format in SHARE_IMAGES:
        raise DataError(f"{visible(str(path))}: stands for files of several folders; name the folder of their images")
    return ImageRoot(os.path.commonpath([os.path.abspath(file.parent) for file in files]), beside=True)


def _files_at(path: Path, format: str | None) -> list[Path]:
    """Returns the files of a source, in sorted order."""
    if path.is_dir():
        return _files_of_folder(path, format)
    if path.exists():
        open_regular(path).close()
        return [path]
    matches = {one: [Path(name) for name in globbed(one)] for one in ranges(str(path))}
    found = {one: [match for match in matched if match.is_file()] for one, matched in matches.items()}
    files = [file for some in found.values() for file in some]
    if not files:
        advice = did_you_mean_file(path, f"name {LOOKED_FOR}")
        raise DataError(f"no such file or folder: {visible(str(path))}; {visible(advice)}")
    if absent := next((one for one, some in found.items() if not some), None):
        raise DataError(f"{visible(absent)} is missing; put it there, or write a range without it")
    _refuse_kinds(visible(str(path)), files)
    return files


def _refuse_kinds(where: str, files: list[Path]) -> None:
    if len(kinds := sorted(set(map(_kind, files)))) > 1:
        raise DataError(f"{where}: stands for files of several kinds ({visible(', '.join(kinds))}); name one kind")


def _kind(file: Path) -> str:
    return file.suffix.lower() or "no suffix"


def _files_of_folder(folder: Path, format: str | None) -> list[Path]:
    """Lists the files to read. Raises DataError where there are none, or some data would not be read."""
    if (folder / tables.SAVED_SPLITS).is_file() or (folder / tables.SAVED_STATE).is_file():
        return tables.saved_files(folder)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [entry for entry in entries if entry.is_file()]
    found = _data_of_folder(names)
    if format == "sidecars":
        found = {}
    elif format is not None and (files := found.get(KIND_OF_FORMAT.get(format, "annotations"))):
        return files
    if format is None:
        _refuse_several(folder, found, names)
    if files := next(iter(found.values()), None) or image_folder.caption_files(folder):
        return files
    if any(_is_image(entry) for entry in names):
        raise DataError(
            f"{visible(str(folder))}: images without a text; write a metadata.csv with the columns file_name and text, "
            "or name the annotation file and give this folder as its images"
        )
    inside = [entry.name for entry in entries if entry.is_dir()]
    more = f"; it holds the folders {visible(', '.join(inside[:4]))}: name one, or a glob as */*.tar" if inside else ""
    raise DataError(f"{visible(str(folder))}: nothing to read in this folder; looked for {LOOKED_FOR}{more}")


def _data_of_folder(names: list[Path]) -> dict[str, list[Path]]:
    """Groups the files of a folder by kind; the first kind decides the format."""
    tars = [entry for entry in names if entry.suffix.lower() == ".tar"]
    stems = {entry.stem for entry in tars}
    found = {
        "table": [entry for entry in names if entry.name in image_folder.TABLE_NAMES],
        "tars": tars,
        # img2dataset writes a .parquet about each of its tars.
        "parquet": [entry for entry in names if entry.suffix.lower() in tables.SUFFIXES and entry.stem not in stems],
        "annotations": [
            entry
            for entry in names
            if entry.suffix.lower() in (".json", *LINE_SUFFIXES)
            and entry.name != "index.json"
            and entry.name not in image_folder.TABLE_NAMES
        ],
    }
    return {kind: files for kind, files in found.items() if files}


def _refuse_several(folder: Path, found: dict[str, list[Path]], names: list[Path]) -> None:
    """Raises DataError where a folder holds data of several kinds, only one of which would be read.

    A .json beside other data is about them, as index.json and dataset_info.json are.
    """
    images = {entry.stem for entry in names if _is_image(entry)}
    texts = [entry for entry in names if entry.suffix.lower() == ".txt" and entry.stem in images]
    lines = [entry for entry in found.get("annotations", []) if entry.suffix.lower() in LINE_SUFFIXES]
    only_json = list(found) == ["annotations"] and not lines  # beside which .txt files are another kind
    each = [*([table] for table in found.get("table", [])), found.get("tars"), found.get("parquet"), lines, texts]
    firsts = [files[0].name for files in each if files]
    firsts += [found["annotations"][0].name] if only_json and texts else []
    if len(firsts) > 1:
        raise DataError(
            f"{visible(str(folder))}: holds data of several kinds ({visible(', '.join(firsts))}), of which one would "
            "be read; name one of these files, or a glob or format of one kind"
        )


def _is_image(path: Path) -> bool:
    return path.suffix.lower()[1:] in IMAGE_SUFFIXES


def _format_of(files: list[Path], path: str | Path) -> str:
    suffix = _kind(files[0])
    if suffix == ".tar":
        return "webdataset"
    if suffix in tables.SUFFIXES:
        return "parquet"
    if suffix in image_folder.DELIMITERS:
        return "captions"
    if suffix == ".txt" and Path(path).is_dir():
        return "sidecars"
    if suffix not in (".json", *LINE_SUFFIXES):
        raise DataError(f"{visible(str(files[0]))}: of no kind that is known; name {LOOKED_FOR}")
    found = {file: _sign_of(file) for file in files}
    formats = {"vqa" if sign == "vqa answers" else sign for sign in found.values()}
    if len(formats) > 1:
        some = ", ".join(f"{file.name} ({sign})" for file, sign in list(found.items())[:4])
        where = visible(shown_source(path))
        raise DataError(f"{where}: holds annotations of several formats: {visible(some)}; name one file")
    return formats.pop()


def _sign_of(file: Path) -> str:
    head = _head_of(file)
    for name, pattern in SIGNS:
        if pattern.search(head):
            return name
    advice = "where it is one of these, say which (format: in a recipe, --format)"
    raise DataError(f"{visible(str(file))}: no annotations that are known; looked for {ANNOTATIONS}; {advice}")


def _head_of(file: Path) -> bytes:
    """The first bytes of an annotation file without the inside of long strings; of lines at least the first one."""
    is_lines = file.suffix.lower() in LINE_SUFFIXES
    with open_regular(file) as opened:
        read = opened.read(HEAD_BYTES)
        refuse_utf16(file, read)
        while len(head := STRING.sub(_shortened, read)) < HEAD_BYTES and len(read) < MAX_LINE_BYTES:
            if (is_lines and b"\n" in read) or not (more := opened.read(len(read))):
                break
            read += more
    return head


def _shortened(string: re.Match[bytes]) -> bytes:
    return string[0] if len(string[0]) <= LONG_STRING else b'"..."'


def _questions_and_answers(files: list[Path]) -> list[Path]:
    """Returns a question file and its annotation file, found by name where only the first is given."""
    by_sign: dict[str, list[Path]] = {}
    for file in files:
        by_sign.setdefault(_sign_of(file), []).append(file)
    questions, answers = by_sign.get("vqa", []), by_sign.get("vqa answers", [])
    if len(questions) != 1 or len(answers) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{visible(names)}: not one question file with its annotations; name the question file")
    if not answers:
        name = _annotations_of(questions[0].name)
        answers = [questions[0].with_name(name)]
        if name == questions[0].name or not answers[0].is_file():
            advice = "put it there, or name both files by a glob"
            raise DataError(f"{visible(str(questions[0]))}: no annotation file {visible(name)} beside it; {advice}")
    return [questions[0], answers[0]]


def _annotations_of(questions: str) -> str:
    """The name of the annotation file of a question file, as VQAv2 calls them."""
    return re.sub(r"(OpenEnded|MultipleChoice)_", "", questions).replace("questions", "annotations")


def _annotations_at(questions: str) -> list[str]:
    """The address of the annotation file beside a question file; none where its name is not as VQAv2's."""
    name = urlsplit(questions).path.rpartition("/")[2]
    return [beside(questions, other)] if (other := _annotations_of(name)) != name else []
