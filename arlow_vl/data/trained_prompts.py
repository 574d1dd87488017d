"""Prompts that a model was trained on, kept in its folder, so that an evaluation can say where it asks otherwise.

trained_prompts.json counts, by task, the instructions after the question in a user's turn: the last line, or nothing
where there is only one. Words beside the image of a caption are counted whole, mostly nothing:

    {"question": {"": 380, "Answer the question using a single word or phrase.": 132}, "caption": {"": 512}}

Rare wordings are summed up: a sentence said once is no instruction, and must not get into a folder that may be shared.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.samples import Message, Text
from arlow_vl.data.stratified import stratified_places
from arlow_vl.errors import CheckpointError
from arlow_vl.json_text import json_text
from arlow_vl.printing import number_of, visible
from vision.whole_files import write_whole

FILE = "trained_prompts.json"
LOOKED_AT = 512
"""Samples of a source, spread evenly."""
SELDOM = 0.01
"""Share of the texts below which a wording counts as not learnt."""
FEWEST = 5
"""Number of texts below which a wording is not kept either."""
OTHERS = "(others)"
"""Stands for the wordings that are not kept."""
ALIKE = {"question": ("question", "conversation"), "caption": ("caption",)}
"""Tasks of training that teach how a task of an evaluation is asked."""


@dataclass(frozen=True)
class TrainedPrompts:
    counts: Mapping[str, Mapping[str, int]]
    """Number of the texts that were looked at, by task and wording."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the file into a model folder."""
        write_whole(Path(folder) / FILE, json_text(self.counts, indent=1) + "\n")

    def describe_difference(self, kind: str, instruction: str) -> str:
        """Returns a sentence if training seldom or never used this instruction; empty if it did or nothing is known."""
        found: Counter[str] = Counter()
        wording = _last_line(instruction) if kind == "question" else instruction.strip()
        for task in ALIKE.get(kind, ()):
            found.update(self.counts.get(task, {}))
        if not found or found[wording] >= SELDOM * found.total():
            return ""
        if found[OTHERS] and found.total() < FEWEST / SELDOM:  # of so few texts it may be one of those not kept
            return ""
        where = "behind the question" if kind == "question" else "beside the image"
        (usual, _), *_ = found.most_common(1)
        usual = "many wordings" if usual == OTHERS else _quoted(usual)
        return (
            f"asked otherwise than in training: with {_quoted(wording)} {where}, where training mostly had "
            f"{usual} (of {number_of(found.total(), 'text')} looked at); scores may be far lower for it"
        )


def prompts_of(sources: Iterable[IndexedSamples]) -> TrainedPrompts:
    """Counts the wordings in samples of each source."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for samples in sources:
        for place in stratified_places(len(samples), LOOKED_AT):
            for text in samples.sample(place).texts:
                found[text.task].update(_wordings(text))
    return TrainedPrompts({task: _frequent(of) for task, of in sorted(found.items()) if of})


def _frequent(found: Counter[str]) -> dict[str, int]:
    least = max(FEWEST, SELDOM * found.total())
    kept = {wording: count for wording, count in found.most_common() if count >= least or not wording}
    others = found.total() - sum(kept.values())
    return kept | ({OTHERS: others} if others else {})


def read_trained_prompts(folder: Path) -> TrainedPrompts | None:
    """Reads the counts of a model folder, None if it has none. Raises CheckpointError for a damaged file."""
    path = folder / FILE
    try:
        counts = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        counts = None
    if not isinstance(counts, dict) or not all(map(_is_count, counts.values())):
        raise CheckpointError(f"{visible(str(path))}: holds no counts of prompts; copy it again, or remove it")
    return TrainedPrompts(counts)


def _wordings(text: Text) -> Iterator[str]:
    for message in text.messages:
        if message["role"] == "user":
            said = _words_of(message).strip()
            yield said if text.task == "caption" else _last_line(said.partition("\n")[2])


def _last_line(words: str) -> str:
    return words.strip().rpartition("\n")[2]


def _words_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _is_count(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, int) for one in value.values())


def _quoted(words: str) -> str:
    return visible(repr(words)) if words else "nothing"
