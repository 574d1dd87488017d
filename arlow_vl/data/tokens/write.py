"""Tokenises text of any size into a folder, by several processes; an interrupted run resumes where it was."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.data.processes import in_processes
from arlow_vl.data.prompts import document_ends
from arlow_vl.data.remote_cache import FULL, naming_addresses
from arlow_vl.data.text_files import TextFiles, parts_of, shown_source, text_files
from arlow_vl.data.text_readers import mark_damaged
from arlow_vl.data.tokens.encoding import Encoder
from arlow_vl.data.tokens.manifest import FORMAT, NAME, Manifest, SourceFile, merged, tokenizer_hash, with_current_times
from arlow_vl.data.tokens.plan import PLAN, TokenizePlan, bounds_of, is_as_noted, refuse_change
from arlow_vl.data.tokens.reader import TokenizedText
from arlow_vl.data.tokens.shards import DEFAULT_LIMITS, PartFacts, ShardFormat, TokenLimits, facts_path, write_part
from arlow_vl.errors import DataError
from arlow_vl.locks import take_lock, warn_unlocked
from arlow_vl.printing import print_line, visible

LOCK = ".lock"
OURS = re.compile(r"\.?([0-9a-f]{8}-\d{5})(-\d{3,})?\.(bin|idx|json)(\..*)?")
Progress = Callable[[int, int], None]


def tokenize_text(
    sources: Sequence[str | Path],
    tokenizer: Any,
    folder: Path,
    *,
    limits: TokenLimits = DEFAULT_LIMITS,
    workers: int = 1,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    progress: Progress | None = None,
    replace: bool = False,
) -> TokenizedText:
    """Returns the documents of `sources` as tokens in `folder`, which are written unless they are there.

    `progress` is called with the bytes of text read so far and in all. With `replace`, text that has changed or
    another tokenizer replaces the tokens in the folder.

    Raises:
        DataError: there is no text, too much of it is unusable, or the folder holds something else.
        CheckpointError: the tokenizer has no eos.
        ResourceError: a process was killed.
        OSError: the disk is full, or cannot be written.
    """
    with contextlib.closing(text_files(sources)) as files, naming_addresses(files.held):
        job = Job(", ".join(map(shown_source, sources)), files, tokenizer, limits)
        with locked(folder):
            if job.is_done(folder, replace=replace):
                Manifest.read(folder).tally.report(job.where, max_bad_fraction)
            else:
                job.prepare(folder, replace=replace)
                with nothing_half_written(folder):
                    facts = job.run(folder, workers, progress)
                job.finish(folder, facts, max_bad_fraction)
    return TokenizedText(folder)


class Job:
    """The parts and shards that files become: decided by text and settings, never by the number of processes."""

    def __init__(self, where: str, files: TextFiles, tokenizer: Any, limits: TokenLimits) -> None:
        self.where, self.files, self.tokenizer = where, files, tokenizer
        self.sources = {path: SourceFile.at(path) for path in self.files}
        self.parts = [part for path in self.files for part in parts_of(path, limits.part_bytes)]
        bos, eos = document_ends(tokenizer)
        dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
        self.form = ShardFormat(bos_token_id=bos, eos_token_id=eos, dtype=dtype, limits=limits)
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        read = list(self.sources.values())
        settings, bounds = self._settings(), bounds_of(self.parts)
        name = hashed([settings, bounds, [[source.size, source.mtime_ns] for source in read]])[:8]
        self.plan = TokenizePlan(settings, name, bounds, read)

    def _settings(self) -> str:
        """Hash of all that decides what the shards hold, but the bytes of the files (see `TokenizePlan.settings`)."""
        limits = self.form.limits
        form = {
            "bos_token_id": self.form.bos_token_id,
            "eos_token_id": self.form.eos_token_id,
            "dtype": self.form.dtype,
            "shard_tokens": limits.shard_tokens,
            "max_tokens": limits.max_tokens,
        }
        paths = [source.path for source in self.sources.values()]
        return hashed([[FORMAT, self.tokenizer_hash, form, limits.part_bytes], paths])

    def stem(self, folder: Path, i: int) -> Path:
        return folder / f"{self.plan.name}-{i:05d}"

    def is_done(self, folder: Path, *, replace: bool) -> bool:
        """Returns True if the folder holds this text's tokens. Raises DataError if another's, unless `replace`."""
        if not (folder / NAME).is_file():
            return False
        manifest = Manifest.read(folder)
        current, changed = with_current_times(manifest.sources)
        same_files = [source.path for source in current] == [source.path for source in self.sources.values()]
        asked = (manifest.tokenizer, manifest.bos_token_id, manifest.eos_token_id, manifest.max_tokens)
        form = self.form
        same = asked == (self.tokenizer_hash, form.bos_token_id, form.eos_token_id, form.limits.max_tokens)
        if same and same_files and not changed:
            if current != manifest.sources:
                dataclasses.replace(manifest, sources=current).write(folder)
            remove_notes(folder)
            return True
        if not replace:
            what = f"{visible(changed[0])} as it was before" if changed else "other text, or another tokenizer's"
            raise DataError(f"{folder} holds the tokens of {what}; name another folder, or remove this one")
        return False

    def prepare(self, folder: Path, *, replace: bool) -> None:
        """Removes what earlier runs wrote, except parts that a run with these settings made of files that have not
        changed since."""
        remove_partial(folder)  # of a process that was killed: the folder is locked
        others = [path.name for path in folder.iterdir() if path.name not in (LOCK, PLAN, NAME) and not is_ours(path)]
        if others:
            raise DataError(f"{folder} holds other files ({visible(others[0])}); name an empty folder")
        begun = TokenizePlan.read(folder)
        is_this = begun is not None and begun.settings == self.plan.settings
        if (folder / PLAN).is_file() and not is_this and not replace:
            raise DataError(
                f"{folder} was begun with other text, another tokenizer or other settings, or by an earlier version; "
                "name another folder, or remove this one"
            )
        kept: set[str] = set()
        if begun and is_this and begun.bounds == self.plan.bounds and not (folder / NAME).is_file():
            self.plan = dataclasses.replace(self.plan, name=begun.name)
            kept = self._unchanged(folder, begun.sources)
        (folder / NAME).unlink(missing_ok=True)
        for path in folder.iterdir():
            if (ours := OURS.fullmatch(path.name)) and ours[1] not in kept:
                path.unlink()
        self.plan.write(folder)

    def _unchanged(self, folder: Path, noted: list[SourceFile]) -> set[str]:
        """Returns the stems of the parts whose files have not changed since the last start."""
        hashes: dict[Path, str | None] = {}
        for i, part in enumerate(self.parts):
            if part.start == 0 and (facts := PartFacts.read(facts_path(self.stem(folder, i)))):
                hashes[part.path] = facts.sha256
        pairs = zip(self.files, noted, strict=True)
        same = {path for path, source in pairs if is_as_noted(source, hashes.get(path))}
        return {self.stem(folder, i).name for i, part in enumerate(self.parts) if part.path in same}

    def run(self, folder: Path, workers: int, progress: Progress | None) -> list[PartFacts]:
        """Writes the missing parts, and returns the facts of all, or of those up to `max_tokens`, in order."""
        facts: list[PartFacts | None] = [
            PartFacts.read(facts_path(self.stem(folder, i))) for i in range(len(self.parts))
        ]
        todo = [i for i, known in enumerate(facts) if known is None]
        total, done = sum(part.size for part in self.parts), [part.size for part in self.parts]
        for i in todo:
            done[i] = 0

        def enough() -> bool:
            return self._needed(facts) is not None

        def report(i: int, count: int) -> None:
            done[i] = count
            if progress is not None and sum(done) < total:
                progress(sum(done), total)

        if todo and not enough():
            encoder = Encoder(self.tokenizer)
            if encoder.reason:
                warn_of_slow_encoding(encoder.reason)

            work, where = functools.partial(self._write, folder, encoder), [str(part.path) for part in self.parts]
            some = min(workers, len(todo))
            for i, part in in_processes(work, todo, some, report=report, named=lambda i: visible(where[i])):
                facts[i] = part
                if enough():
                    break
            if progress is not None:
                progress(total, total)
            if encoder.reason is None and (reasons := {part.reason for part in facts if part and part.reason}):
                warn_of_slow_encoding(reasons.pop())
        needed = self._needed(facts)
        kept = facts[: len(facts) if needed is None else needed]
        assert all(part is not None for part in kept)
        return [part for part in kept if part is not None]

    def _write(self, folder: Path, encoder: Encoder, i: int, on_progress: Callable[[int], None]) -> PartFacts:
        part = self.parts[i]
        return write_part(part, self.sources[part.path], self.stem(folder, i), encoder, self.form, on_progress)

    def _needed(self, facts: Sequence[PartFacts | None]) -> int | None:
        """Returns how many of the first parts hold `max_tokens`; None: all are needed, or it is not known yet."""
        tokens, max_tokens = 0, self.form.limits.max_tokens
        for i, part in enumerate(facts):
            if part is None:
                return None
            tokens += part.tokens
            if max_tokens is not None and tokens >= max_tokens:
                return i + 1
        return None

    def finish(self, folder: Path, facts: list[PartFacts], max_bad_fraction: float) -> None:
        """Writes the manifest, unless too much of the text was unusable or it changed while it was read."""
        tallies = [(part.path, fact.tally) for part, fact in zip(self.parts, facts, strict=False)]
        mark_damaged(self.files, tallies)
        tally = merged(tallies)
        tally.report(self.where, max_bad_fraction)
        for source in self.sources.values():
            refuse_change(source)
        tokens = sum(fact.tokens for fact in facts)
        if not tokens:
            raise DataError(f"{visible(self.where)} holds no document; name text that is not empty")
        hashes = {
            str(part.path.resolve()): fact.sha256
            for part, fact in zip(self.parts, facts, strict=False)
            if part.start == 0
        }
        Manifest(
            format=FORMAT,
            tokenizer=self.tokenizer_hash,
            bos_token_id=self.form.bos_token_id,
            eos_token_id=self.form.eos_token_id,
            dtype=self.form.dtype,
            max_tokens=self.form.limits.max_tokens,
            read_to_end=tokens < (self.form.limits.max_tokens or tokens + 1),
            unit=tally.unit,
            used=tally.used,
            skipped=dict(tally.skipped),
            examples=tally.examples,
            sources=[dataclasses.replace(one, sha256=hashes.get(one.path)) for one in self.sources.values()],
            shards=[shard for fact in facts for shard in fact.shards],
        ).write(folder)
        remove_notes(folder)


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@contextlib.contextmanager
def nothing_half_written(folder: Path) -> Iterator[None]:
    """Removes half-written shards if the block raises; complete ones stay for the next start."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = str(folder)
        remove_partial(folder)
        raise


def remove_partial(folder: Path) -> None:
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def warn_of_slow_encoding(reason: str) -> None:
    print_line(
        f"the tokenizer itself encodes, which takes several times as long as tiktoken: {reason}", file=sys.stderr
    )


def is_ours(path: Path) -> bool:
    """Returns True for a file of a shard, or of the facts of a shard or a part."""
    return OURS.fullmatch(path.name) is not None


def remove_notes(folder: Path) -> None:
    """Removes the files that an interrupted run resumes from, and shards that the manifest does not name."""
    named = {shard.name for shard in Manifest.read(folder).shards}
    for path in folder.iterdir():
        if is_ours(path) and (path.suffix in (".json", ".partial") or path.stem not in named):
            path.unlink()
    (folder / PLAN).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time write into a folder; another one says so, and waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as lock:
        try:
            is_held = take_lock(lock)
        except BlockingIOError:
            print_line(f"waiting for another process that tokenises into {folder}", file=sys.stderr)
            is_held = take_lock(lock, waits=True)
        if not is_held:
            warn_unlocked(folder)
        yield
