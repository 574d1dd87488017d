"""One run from recipe to model folder: resumes where an earlier start stopped, trains, exports."""

import contextlib
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from arlow_vl.errors import DivergenceError, ResourceError, is_out_of_memory
from arlow_vl.locks import one_process
from arlow_vl.models.folder_writing import save_folder
from arlow_vl.printing import print_line
from arlow_vl.training.averaging import MovingAverage
from arlow_vl.training.best import stopped_early
from arlow_vl.training.build import Stage, build_stage, finish_model
from arlow_vl.training.callbacks import BadItemsCheck, Checkpointing, FrozenTensorsCheck
from arlow_vl.training.checkpoint_io import ArlowCheckpointIO, newest_good, remove_leftovers
from arlow_vl.training.checkpoint_names import checkpoints, step_of, steps_done
from arlow_vl.training.launch import ProcessRank, find_place
from arlow_vl.training.memory import out_of_memory
from arlow_vl.training.ranks import data_rank, first_prepares, joined
from arlow_vl.training.recipe import Recipe, to_plain
from arlow_vl.training.refusals import UNFINISHED, changes_of, refuse_misfits
from arlow_vl.training.report.folder import is_finished
from arlow_vl.training.report.page import NAME as REPORT
from arlow_vl.training.report.page import write_run_report
from arlow_vl.training.schedule import schedule_warnings
from arlow_vl.training.seeds import SeedEachStep
from arlow_vl.training.sharding import make_whole
from arlow_vl.training.starts import note_start
from arlow_vl.training.strategies import device_type_of, engine_of, environment_of, refuse_wrong_engine
from arlow_vl.training.watching import watching
from vision.whole_files import remove_remains, write_whole

ONE_PROCESS = ProcessRank()


def fit(recipe: Recipe, *, callbacks: Sequence[Callback] = ()) -> Path:
    """Runs a recipe to its end and returns the folder of the trained model, `hf` in the run folder.

    `callbacks` come after the run's own. Each of several processes calls this; `arlow fit` starts them.

    Started again with the same recipe, it resumes from the newest undamaged checkpoint; a finished run returns at once.

    Raises:
        ValueError: the recipe cannot be run, or the folder holds a run of another recipe, or one in progress.
        DataError, CheckpointError, DivergenceError, ResourceError: see `arlow_vl.errors`.
        SystemExit: stopped by SIGTERM or SIGINT (143, 130), after a checkpoint.
    """
    began, place = time.monotonic(), find_place(recipe.run.engine)
    refuse_early(recipe, place)
    product = recipe.run_dir / "hf"
    with joined(place, device_type_of(recipe.run.engine)), contextlib.ExitStack() as held, quiet_libraries():
        built: list[Stage] = []

        def prepare() -> dict[str, Any]:
            """Prepares the run folder, indexes, tokenised text and features, which the other processes then use."""
            held.enter_context(run_lock(recipe.run_dir))
            begun = begin(recipe)
            if not begun["is_finished"]:
                built.append(build(recipe))
                note_start(recipe, built[0])
            return begun

        begun = first_prepares("stage", prepare)
        if begun["is_finished"]:
            print_line(f"{recipe.run_dir} is finished, its model lies in {product}")
            return product
        stage = built[0] if built else build(recipe)
        trainer = build_trainer(recipe, stage, callbacks, place, began=began)
        train(trainer, stage, recipe, begun["newest"])
        first_prepares("product", lambda: finish(stage, recipe, product))
    return product


def begin(recipe: Recipe) -> dict[str, Any]:
    """Prepares the run folder and returns `is_finished`, and else `newest`: the checkpoint to resume from, or None.

    Raises:
        ValueError: the folder holds checkpoints or a model of another recipe.
    """
    changes = changes_of(recipe)
    remove_remains(recipe.run_dir, seconds=0)
    for left in (".hf.old", ".hf.partial"):  # by a killed process
        shutil.rmtree(recipe.run_dir / left, ignore_errors=True)
    for sentence in schedule_warnings(recipe.optim, recipe.run.max_steps):
        print_line(f"arlow: {sentence}", file=sys.stderr)
    folder = recipe.run_dir / "checkpoints"
    if is_finished(recipe.run_dir) and not has_more_steps(recipe, folder):
        if step := stopped_early(recipe.run_dir, recipe.run.watch.patience):
            print_line(
                f"arlow: it ended after step {step} by run.watch.patience {recipe.run.watch.patience}; raise that or "
                "leave it out to resume",
                file=sys.stderr,
            )
        if not (recipe.run_dir / REPORT).exists():  # prevented by a full disk or a kill
            write_run_report(recipe.run_dir)
        return {"is_finished": True}
    begin_folder(recipe, changes)
    if (recipe.run_dir / "hf").exists():
        write_whole(recipe.run_dir / UNFINISHED, "hf is of the run before it was made longer\n")
    newest = newest_good(folder)
    remove_leftovers(folder, newest)
    return {"is_finished": False, "newest": newest and str(newest)}


def build(recipe: Recipe) -> Stage:
    """Builds the stage of a recipe after setting the seed, and then the number of CPU threads for training."""
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.manual_seed(recipe.run.seed)
    stage = build_stage(recipe)  # the first process prepares with all threads while the others wait
    engine = recipe.run.engine
    if not recipe.run.threads and "OMP_NUM_THREADS" not in os.environ and device_type_of(engine) == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // engine.devices))
    return stage


def train(trainer: Trainer, stage: Stage, recipe: Recipe, newest: str | None) -> None:
    """Trains from the checkpoint `newest` to the end, with errors that name the last good checkpoint or the memory."""
    try:
        trainer.fit(stage.module, datamodule=stage.data, ckpt_path=newest)
    except DivergenceError as error:
        last = newest_good(recipe.run_dir / "checkpoints") or "none"
        raise DivergenceError(f"{error}; last good checkpoint: {last}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(stage.module.model, recipe, error) from error
    if recipe.run.engine.strategy == "fsdp":
        make_whole(stage.module.model)


def finish(stage: Stage, recipe: Recipe, product: Path) -> None:
    """Writes the model folder and the report."""
    finish_model(stage.module.model)
    (recipe.run_dir / REPORT).unlink(missing_ok=True)
    if product.is_dir():  # of the run before it was extended; the last checkpoint can restore it
        gone = product.with_name(f".{product.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        product.rename(gone)  # so that a kill leaves no incomplete folder
        shutil.rmtree(gone)
    save_folder((*stage.products, *stage.data.trained_prompts), product)
    stage.data.report_bad_items()
    (recipe.run_dir / UNFINISHED).unlink(missing_ok=True)
    write_run_report(recipe.run_dir)


def has_more_steps(recipe: Recipe, folder: Path) -> bool:
    """Returns True if a finished run is to be extended."""
    found = checkpoints(folder)
    if not found or stopped_early(recipe.run_dir, recipe.run.watch.patience):
        return False
    return step_of(found[0]) < recipe.run.max_steps


def refuse_early(recipe: Recipe, place: ProcessRank) -> None:
    """Raises ValueError before the processes wait for each other; one process of each machine prints it."""
    try:
        refuse_before_building(recipe)
    except ValueError as error:
        if place.local_rank == 0:
            raise
        raise SystemExit(2) from error


def refuse_before_building(recipe: Recipe) -> None:
    """Raises ValueError for a recipe that cannot be run on this machine; a dry run checks the same."""
    refuse_wrong_engine(recipe)
    refuse_misfits(recipe)


def build_trainer(
    recipe: Recipe, stage: Stage, callbacks: Sequence[Callback] = (), place: ProcessRank = ONE_PROCESS, *, began: float
) -> Trainer:
    """Builds Lightning's Trainer for one epoch of a known number of batches; only the first process writes logs."""
    run, folder = recipe.run, recipe.run_dir
    averages = [MovingAverage(recipe.optim.ema)] if recipe.optim.ema else []
    watch = watching(recipe, stage, averages, writes=place.is_first)
    rank, ranks = data_rank(run.engine)
    own_callbacks = [
        watch.readings,
        SeedEachStep(run.seed, rank=rank, ranks=ranks),
        FrozenTensorsCheck(),
        BadItemsCheck(stage.data),
        *watch.of_validated_weights,
        *averages,
        *watch.looks,
        Checkpointing(folder / "checkpoints", run, watch.readings, began=began),
    ]
    engine = engine_of(recipe)
    engine["plugins"] += [ArlowCheckpointIO(), environment_of(place, run.engine)]
    return Trainer(
        **engine,
        max_epochs=1,  # the loader's length ends the run; with max_steps, a last checkpoint would resume past its end
        gradient_clip_val=recipe.optim.grad_clip,
        val_check_interval=run.validate_every * engine["accumulate_grad_batches"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        deterministic=True,
        use_distributed_sampler=False,
        logger=False,
        profiler=watch.readings.waiting_for_data,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=place.is_first,
        callbacks=[*own_callbacks, *callbacks],
        default_root_dir=folder,
    )


def begin_folder(recipe: Recipe, changes: Sequence[str]) -> None:
    """Writes config.yaml, and prints the differences from that of an earlier start."""
    done = steps_done(recipe.run_dir)
    for sentence in changes:
        print_line(f"resumes with a change: {sentence}", file=sys.stderr)
    if too_late := [step for step in recipe.run.skip_steps if step <= done and "run.skip_steps" in " ".join(changes)]:
        print_line(f"run.skip_steps: steps {too_late} are done already and stay as they are", file=sys.stderr)
    write_whole(recipe.run_dir / "config.yaml", yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True))


def run_lock(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Returns the lock that a run holds on its folder.

    Raises:
        ResourceError: the folder cannot be written.
        ValueError: on entering, if another process holds the lock.
    """

    def refusal(process: str) -> ValueError:
        return ValueError(f"{run_dir} is in use by process {process}; wait for it or stop it")

    path = run_dir / "run.lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        open(path, "a").close()
    except OSError as error:
        raise ResourceError(
            f"run_dir {run_dir} cannot be written ({error.strerror}); name another one, or make it writable"
        ) from error
    return one_process(path, refusal)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences Lightning's notices about our own choices, and the progress bars of transformers."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric", "pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    had_bars = is_progress_bar_enabled()
    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        warnings.filterwarnings("ignore", message=r".*LeafSpec")
        warnings.filterwarnings("ignore", message=r"Grad strides do not match")  # of convolutions, under ddp
        warnings.filterwarnings(
            "ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True"
        )  # summed before
        warnings.filterwarnings("ignore", message=r"`training_step` returned `None`")
        warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`")  # without its loggers
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDPArlowVL")  # we change no output in place
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if had_bars:
                enable_progress_bar()
