"""Finds items whose image the model was trained on, byte for byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from arlow_vl.data.index.ready import shared_images
from arlow_vl.data.text_files import shown_source
from arlow_vl.evaluation.origins import TrainedImages, trained_images
from arlow_vl.evaluation.tasks.items import Item, PriorData
from arlow_vl.evaluation.tasks.task import Task
from arlow_vl.printing import number_of, print_line

ADVICE = "`--training DATA` counts images of DATA, however much that is"


@runtime_checkable
class Asked(Protocol):
    """A task, its items, and the data from which it takes priors."""

    @property
    def task(self) -> Task: ...

    @property
    def items(self) -> Sequence[Any]: ...

    @property
    def training(self) -> PriorData: ...

    @property
    def facts(self) -> dict[str, Any]:
        """Entries of metrics.json."""
        ...


def note_overlaps(prepared: Sequence[Asked], model: Path, named: str | None) -> None:
    """Counts items with training images in the facts of each task, and warns.

    The training data are those that the command names, else the sources in the recipes beside the model, else the
    training data of the task.
    """
    asked = [one for one in prepared if one.task.kind != "text"]
    if not asked:
        return
    trained = TrainedImages() if named else trained_images(model)
    for sentence in trained.not_checked:
        print_line(f"not checked for images of training: {sentence}; {ADVICE}")
    wanted = {bytes.fromhex(sha256) for one in asked for item in one.items for sha256 in item.shown}
    found: dict[tuple[str, ...], set[str]] = {}
    for one in asked:
        sources, indexes = trained.sources, trained.indexes
        if not sources and one.training.compared is not None:
            sources, indexes = (one.training.compared,), tuple(one.training.indexes)
        if sources not in found:
            found[sources] = {sha256.hex() for sha256 in shared_images(indexes, wanted)}
        one.facts["overlap"] = overlap = overlap_of(one.items, found[sources], sources, trained.not_checked)
        if overlap.get("items"):
            print_line(
                f"warning: {overlap['items']:,} of {number_of(len(one.items), 'item')} of {one.task.name} show an "
                f"image of the training data, byte for byte ({overlap['first']} first); `arlow data overlap` names all"
            )


def overlap_of(
    items: Sequence[Item], images: set[str], sources: Sequence[str], not_checked: Sequence[str]
) -> dict[str, Any]:
    """Returns the entry for metrics.json; empty if nothing is known about the training data."""
    overlap: dict[str, Any] = {}
    if sources:
        shared = [item.id for item in items if not images.isdisjoint(item.shown)]
        overlap = {
            "items": len(shared),
            "first": shared[0] if shared else "",
            "sources": list(map(shown_source, sources)),
        }
    return overlap | ({"not_checked": list(not_checked)} if not_checked else {})
