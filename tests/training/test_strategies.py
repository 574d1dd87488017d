"""What cannot be shared so by these devices is said before anything is computed."""

import pytest
import torch
from lightning.pytorch import Trainer

from arlow_vl.training.launch import ProcessRank, find_place
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from arlow_vl.training.settings import EngineConfig
from arlow_vl.training.strategies import environment_of, refuse_wrong_engine
from tests.tiny_runs import write_text_recipe

LORA = '{"decoder": {"treatment": "lora", "rank": 2}, "cross_attention": "frozen"}'


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return str(write_text_recipe(tmp_path_factory.mktemp("text")))  # two batches a step


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": "4"}, "accumulate_grad_batches is 2, .* which 4 data ranks cannot share evenly; set it to 4"),
        ({"devices": "3", "nodes": "2"}, "which 6 data ranks cannot share evenly; set it to 6"),
        ({"strategy": "fsdp", "optimizer": "muon"}, "muon needs whole matrices: set run.engine.strategy to ddp"),
        (
            {"devices": "2", "strategy": "fsdp", "tensor_parallel": "2", "policy": LORA},
            r"policy.decoder has adapters, which run.engine.tensor_parallel cannot share among devices; set it to 1",
        ),
        ({"precision": "16-mixed"}, "16-mixed needs a GPU; on a CPU set it to bf16-mixed or 32-true"),
    ],
)
def test_combinations_that_cannot_be_are_refused(config, tmp_path, options, sentence):
    keys = {"optimizer": "optim.optimizer", "precision": "run.precision", "policy": "policy"}
    words = [word for name, value in options.items() for word in (f"--{keys.get(name, f'run.engine.{name}')}", value)]
    recipe = parse_recipe(
        ["--config", config, "--run_dir", str(tmp_path / "run"), "--run.engine.accelerator", "cpu", *words]
    )
    with pytest.raises(ValueError, match=sentence):
        refuse_wrong_engine(recipe)


def test_workers_are_refused_where_forking_is_not_safe(config, tmp_path, monkeypatch):
    recipe = parse_recipe(["--config", config, "--run_dir", str(tmp_path / "run"), "--run.workers", "2"])
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ValueError, match=r"run.workers is 2, .* forked, which is safe on Linux alone; set it to 0"):
        refuse_wrong_engine(recipe)


def test_a_begun_run_is_told_on_how_many_devices_it_can_go_on(config, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000003.ckpt").touch()
    words = ["--config", config, "--run_dir", str(tmp_path / "run"), "--run.engine.accelerator", "cpu"]
    with pytest.raises(ValueError, match=r"a begun run keeps it, so this one resumes with a number .* \(1, 2\)$"):
        refuse_wrong_engine(parse_recipe([*words, "--run.engine.devices", "4"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_the_run_has_a_folder(config, tmp_path):
    run = tmp_path / "run"
    recipe = parse_recipe(["--config", config, "--run_dir", str(run), "--run.engine.accelerator", "cuda"])
    with pytest.raises(
        ValueError, match=r"run.engine.accelerator is cuda, but torch sees no GPU; set it to cpu or auto"
    ):
        fit(recipe)
    assert not run.exists()


def test_lightning_gets_the_ranks_that_were_found_and_changes_none():
    environment = environment_of(ProcessRank(rank=5, local_rank=1, world_size=8), EngineConfig(devices=4, nodes=2))
    environment.set_global_rank(0)
    environment.set_world_size(1)
    ranks = environment.global_rank(), environment.local_rank(), environment.node_rank(), environment.world_size()
    assert ranks == (5, 1, 1, 8)


@pytest.mark.parametrize("job", [{}, {"NTASKS_PER_NODE": "8", "NNODES": "4"}], ids=["no tasks a node", "larger job"])
def test_a_step_of_slurm_trains_whatever_its_job_asked_for(monkeypatch, job):
    for name, value in ({"NTASKS": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0"} | job).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    engine = EngineConfig(devices=2)
    environment = environment_of(find_place(engine), engine)
    environment.validate_settings(num_devices=2, num_nodes=1)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", plugins=[environment], logger=False)
    assert (trainer.global_rank, trainer.local_rank, trainer.world_size) == (0, 0, 2)
