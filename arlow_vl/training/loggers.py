"""Loggers beside metrics.csv, Lightning's and trackio: they write readings, validations and looks to the run folder.

Nothing is sent anywhere unless a variable of the package itself asks for it: WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from arlow_vl.training.logs import metrics_of, validation_of
from arlow_vl.training.look_results import Look
from arlow_vl.training.recipe import Recipe, to_plain
from arlow_vl.training.steps import Reading

PROJECT = "arlow"
"""Project of our runs in every logger."""


def run_id(run_dir: Path) -> str:
    """Returns the id by which loggers find a run again when it resumes: its folder's name, and a hash of its path."""
    path = str(run_dir.resolve())
    return f"{run_dir.resolve().name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


class TrackioLogger(Logger):
    """Lightning logger for trackio, which Lightning does not support."""

    def __init__(self, name: str, folder: Path, *, resumes: bool) -> None:
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(folder))  # read on import
        import trackio  # pyrefly: ignore[missing-import]

        self.experiment = trackio
        self.run_name, self.resumes = name, resumes

    @property
    def name(self) -> str:
        return PROJECT

    @property
    def version(self) -> str:
        return self.run_name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        resume = "allow" if self.resumes else "never"
        self.experiment.init(project=PROJECT, name=self.run_name, config=params, resume=resume)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    def finalize(self, status: str) -> None:
        self.experiment.finish()


def build_logger(name: str, run_dir: Path, *, step: int, mlflow_run: str | None) -> Logger:
    """Builds a logger for a run that has done `step` steps; `mlflow_run` is the id of its earlier start in MLflow."""
    folder, run = run_dir / name, run_id(run_dir)
    if name == "tensorboard":  # what a killed run wrote after its checkpoint is hidden
        return TensorBoardLogger(run_dir, name="", version=name, purge_step=step + 1 if step else None)
    folder.mkdir(exist_ok=True)
    if name == "wandb":
        is_offline = "WANDB_MODE" not in os.environ
        return WandbLogger(name=run, project=PROJECT, save_dir=folder, version=run, offline=is_offline)
    if name == "mlflow":  # into a database, as it no longer writes plain files
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        where = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "artifacts").resolve().as_uri()
        return MLFlowLogger(PROJECT, run_name=run, tracking_uri=uri, artifact_location=where, run_id=mlflow_run)
    return TrackioLogger(run, folder, resumes=step > 0)


class Loggers(Callback):
    """Passes readings, validations and looks to each logger; a listener of `steps.Readings` and `looks.Looks`."""

    def __init__(self, recipe: Recipe, validation_columns: Sequence[str]) -> None:
        self.recipe, self.validation_columns = recipe, validation_columns
        self.loggers: dict[str, Logger] = {}
        self.mlflow_run: str | None = None
        self.shown: set[str] = set()
        """Images that were passed to a logger already, as `logger path`."""

    def state_dict(self) -> dict[str, Any]:
        return {"mlflow_run": self.mlflow_run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mlflow_run = state_dict["mlflow_run"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for name in self.recipe.run.watch.loggers:
            logger = build_logger(name, self.recipe.run_dir, step=trainer.global_step, mlflow_run=self.mlflow_run)
            if trainer.global_step == 0 or name != "mlflow":  # in which a parameter can be written only once
                logger.log_hyperparams(to_plain(self.recipe))
            if isinstance(logger, MLFlowLogger):
                self.mlflow_run = logger.run_id
            self.loggers[name] = logger

    def step_read(self, reading: Reading) -> None:
        if row := metrics_of(reading):
            for logger in self.loggers.values():
                logger.log_metrics(row, reading.step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = validation_of(trainer, self.validation_columns)
        for logger in self.loggers.values():
            logger.log_metrics(row, trainer.global_step)

    def look_taken(self, look: Look) -> None:
        for name, logger in self.loggers.items():
            logger.log_metrics(look.numbers(), look.step)
            for source in look.sources:
                rows = [[sample.key, sample.reference, sample.written] for sample in source.samples]
                WRITERS[name].rows(logger, f"looks/{source.name}", rows, look.step)
                for path in (path for sample in source.samples for path in sample.images):
                    self._image(name, logger, path, look.step)

    def _image(self, name: str, logger: Logger, path: str, step: int) -> None:
        """Passes an image to a logger once for each start of the run, as the images stay the same."""
        if f"{name} {path}" not in self.shown:
            self.shown.add(f"{name} {path}")
            with Image.open(self.recipe.run_dir / path) as image:
                WRITERS[name].image(logger, path.removesuffix(".jpg"), image.convert("RGB"), step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in self.loggers.values():
            logger.save()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish("success")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish("failed")

    def _finish(self, status: str) -> None:
        loggers, self.loggers = self.loggers, {}
        for logger in loggers.values():
            logger.save()
            logger.finalize(status)


HEADER = ["sample", "reference", "written"]


class Writer(Protocol):
    """Writer of tables and images through the API of a logger's own package."""

    def rows(self, logger: Any, name: str, rows: list[list[str]], step: int) -> None: ...

    def image(self, logger: Any, name: str, image: Image.Image, step: int) -> None: ...


class OfTensorBoard:
    def rows(self, logger: Any, name: str, rows: list[list[str]], step: int) -> None:
        logger.experiment.add_text(name, markdown_table(rows), step)

    def image(self, logger: Any, name: str, image: Image.Image, step: int) -> None:
        logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")


class OfWandb:
    def rows(self, logger: Any, name: str, rows: list[list[str]], step: int) -> None:
        logger.log_text(key=name, columns=HEADER, data=rows, step=step)

    def image(self, logger: Any, name: str, image: Image.Image, step: int) -> None:
        logger.log_image(key=name, images=[image], step=step)


class OfMLflow:
    def rows(self, logger: Any, name: str, rows: list[list[str]], step: int) -> None:
        logger.experiment.log_text(logger.run_id, markdown_table(rows), f"{name}/step-{step:06d}.md")

    def image(self, logger: Any, name: str, image: Image.Image, step: int) -> None:
        logger.experiment.log_image(logger.run_id, image, f"{name}.png")


class OfTrackio:
    def rows(self, logger: Any, name: str, rows: list[list[str]], step: int) -> None:
        logger.experiment.log({name: logger.experiment.Markdown(markdown_table(rows))}, step=step)

    def image(self, logger: Any, name: str, image: Image.Image, step: int) -> None:
        logger.experiment.log({name: logger.experiment.Image(image)}, step=step)


WRITERS: dict[str, Writer] = {
    "tensorboard": OfTensorBoard(),
    "wandb": OfWandb(),
    "mlflow": OfMLflow(),
    "trackio": OfTrackio(),
}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with `HEADER`, in which no text can end its cell or act as markup."""
    table = [HEADER, ["---"] * len(HEADER), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _cell(text: str) -> str:
    """Returns the text as inline code, without backquotes and line ends, which would end it."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else ""
