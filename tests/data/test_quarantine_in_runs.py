"""A loader tells every unusable item, so that quarantine.jsonl is the same for any workers and after any resume."""

import json
from pathlib import Path

import pytest

from arlow_vl.data.loader import ResumableLoader
from arlow_vl.data.quarantine import Quarantine
from arlow_vl.data.sources import Source
from vision.decoding.image import ImageError


class Numbers:
    """Items of which every seventh cannot be used."""

    fingerprint = "numbers"

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        if index % 7 == 3:
            raise ImageError(f"n{index}", "corrupt", "cannot be decoded")
        return index

    def key(self, index: int) -> str:
        return f"n{index}"


def run(path: Path, *, workers: int, batches: int, state: dict | None = None) -> dict:
    """Trains on so many batches more, as a run does; the state after the last but one is the checkpoint."""
    quarantine = Quarantine(path)
    loader = ResumableLoader(
        [Source(name="s", dataset=Numbers(), samples_per_batch=4, max_bad=6)],
        lambda items: {"items": items},
        seed=0,
        num_batches=25,
        workers=workers,
        on_fault=quarantine.add,
    )
    if state:
        loader.load_state_dict(state)
    stream = iter(loader)
    state = loader.state_dict()
    for _ in range(batches):
        state = loader.state_dict()
        next(stream)
    stream.close()
    return state


@pytest.mark.parametrize("workers", [(0, 0), (2, 2), (0, 3), (1, 2)])
def test_a_run_lists_its_bad_samples_once_with_any_workers_and_after_resumes(tmp_path, workers):
    path, (first, second) = tmp_path / "quarantine.jsonl", workers
    state = run(path, workers=first, batches=7)
    state = run(path, workers=second, batches=6, state=state)
    run(path, workers=first, batches=25 - state["position"], state=state)
    assert sorted(line["key"] for line in map(json.loads, path.read_text().splitlines())) == sorted(
        f"n{n}" for n in range(3, 40, 7)
    )
