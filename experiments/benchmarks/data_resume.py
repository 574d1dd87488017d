"""Kill and reshape: runs that are killed and go on with other numbers of workers and ranks, against one that is not.

    python -m experiments.benchmarks.data_resume

Each life of a run is a process of its own that ends by SIGKILL in the middle of a step; the next one goes on from the
last checkpoint. Ranks are simulated in it, each a loader with its own workers. Compared are the samples of every
optimizer step, as multisets, and the counts of unusable images. Needs no device; takes about four minutes on two cores.
"""

import json
import multiprocessing
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.loader import Packing, ResumableLoader, merge_states
from arlow_vl.data.mixing import Mixture
from arlow_vl.data.rows import RowBudget
from arlow_vl.data.sources import Source
from vision.decoding.image import ImageError

BATCHES_PER_STEP = 12
"""Over all ranks: 1, 2, 3 or 4 of them share it."""
STEPS = 20
CHECKPOINT_EVERY = 3


class Examples:
    """Small items of many lengths, some of them with an unusable image."""

    def __init__(self, size: int, *, images: int, bad_every: int = 0) -> None:
        self.size, self.images, self.bad_every = size, images, bad_every
        self.fingerprint = f"{size}/{images}/{bad_every}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if self.bad_every and index % self.bad_every == 1:
            raise ImageError(self.key(index), "truncated", "cut short")
        return index

    def key(self, index: int) -> str:
        return f"{index:05d}"

    def length(self, index: int) -> tuple[int, int]:
        return 5 + index * 37 % 60, index % (self.images + 1)


class Life(NamedTuple):
    """Settings of a process, and the batch before which it is killed (None: it runs to the end)."""

    workers: int
    ranks: int
    killed_at: int | None = None


def build(mode: str, *, workers: int, rank: int, ranks: int, steps: int) -> ResumableLoader:
    """A rank's loader: `padded` with fixed shares, or `packed` rows of a mixture whose weights change."""
    datasets = {"captions": Examples(90, images=1, bad_every=30), "chats": Examples(70, images=3, bad_every=23)}
    if mode == "packed":
        datasets["text"] = Examples(400, images=0)
    sources = [Source(name=name, dataset=dataset, samples_per_batch=2, max_bad=5) for name, dataset in datasets.items()]
    weights = {0: {"captions": 2, "chats": 1, "text": 1}, 15: {"captions": 1, "chats": 1, "text": 4}}
    packing = Packing(
        budget=RowBudget(tokens=128, images=6),
        rows_per_batch=2,
        mixture=Mixture(weights=weights, by="tokens"),
        rows_per_step=2 * BATCHES_PER_STEP,
    )
    return ResumableLoader(
        sources,
        lambda items: {"items": items},
        seed=7,
        num_batches=steps * BATCHES_PER_STEP,
        workers=workers,
        rank=rank,
        ranks=ranks,
        packing=packing if mode == "packed" else None,
    )


def live(mode: str, folder: Path, life: Life, steps: int) -> None:
    """One process: goes on from the folder's checkpoint; logs every step; is killed, or reaches the end."""
    loaders = [build(mode, workers=life.workers, rank=r, ranks=life.ranks, steps=steps) for r in range(life.ranks)]
    step, checkpoint, log = 0, folder / "state.json", folder / "steps.jsonl"
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
        step = state["position"] // BATCHES_PER_STEP
        for loader in loaders:
            loader.load_state_dict(state)
    lines = log.read_text().splitlines(keepends=True)[:step] if log.exists() else []
    log.write_text("".join(lines))
    streams = [iter(loader) for loader in loaders]
    read = 0
    for number in range(step, steps):
        keys: list[str] = []
        for _ in range(BATCHES_PER_STEP // life.ranks):
            for stream in streams:
                if read == life.killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                keys += next(stream)["keys"]
                read += 1
        with open(log, "a") as file:
            file.write(json.dumps(sorted(keys)) + "\n")
        if (number + 1) % CHECKPOINT_EVERY == 0 or number + 1 == steps:
            written = folder / "state.part"
            written.write_text(json.dumps(merge_states([loader.state_dict() for loader in loaders])))
            written.replace(checkpoint)


def run(mode: str, lives: Sequence[Life], *, steps: int = STEPS) -> dict[str, Any]:
    """The samples of every step, the last state's counts of unusable images, and the largest state in bytes."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for life in lives:
            process = context.Process(target=live, args=(mode, folder, life, steps))
            process.start()
            process.join()
            expected = 0 if life.killed_at is None else -signal.SIGKILL
            if process.exitcode != expected:
                raise RuntimeError(f"{life} ended with {process.exitcode}, not {expected}")
        state = json.loads((folder / "state.json").read_text())
        logged = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    bad = {name: {**b, "first": sorted(b["first"])} for name, b in state["bad"].items()}
    return {"steps": logged, "bad": bad, "state_bytes": len(json.dumps(state))}


def cases(steps: int = STEPS) -> Iterator[list[Life]]:
    """Every number of workers and ranks before and after a kill, in different places; then two kills."""
    batches = steps * BATCHES_PER_STEP
    places = [0, 1, 14, batches // 2, batches - 13, batches - 1]  # first and last of the run, and within steps
    for number, (workers, ranks) in enumerate((w, r) for w in range(5) for r in range(1, 5)):
        other = Life((workers + 2) % 5, ranks % 4 + 1)
        yield [Life(workers, ranks, places[number % len(places)]), other]
    for workers, ranks in ((0, 1), (2, 2), (4, 3), (1, 4)):
        yield [Life(workers, ranks, 50), Life(4 - workers, 5 - ranks, 60), Life(workers, ranks % 4 + 1)]


def main() -> None:
    print("| batches | killed at batch | workers | ranks | steps | samples | steps that differ | state, bytes |")
    print("|---|---|---|---|---|---|---|---|")
    totals: Counter[str] = Counter()
    for mode in ("padded", "packed"):
        whole = run(mode, [Life(0, 1)])
        for lives in cases():
            found = run(mode, lives)
            differ = sum(a != b for a, b in zip(whole["steps"], found["steps"], strict=True))
            differ += found["bad"] != whole["bad"]
            killed = ", then ".join(str(life.killed_at) for life in lives[:-1])
            workers, ranks = (" -> ".join(str(life[i]) for life in lives) for i in (0, 1))
            samples = sum(map(len, found["steps"]))
            print(f"| {mode} | {killed} | {workers} | {ranks} | {STEPS} | {samples:,} | {differ} | "
                  f"{found['state_bytes']:,} |", flush=True)  # fmt: skip
            totals.update(runs=1, kills=len(lives) - 1, equal=not differ)
    print(f"\n{totals['kills']} kills in {totals['runs']} runs; {totals['equal']} runs equal the one never killed.")


if __name__ == "__main__":
    main()
