"""The moving average is that of exact numbers, whatever the weights are kept in."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from arlow_vl.training.averaging import MovingAverage
from arlow_vl.training.checkpoint_io import read_checkpoint
from arlow_vl.training.checkpoint_names import checkpoints
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from arlow_vl.training.steps import step_ends
from tests.tiny_runs import write_text_recipe

DECAY = 0.9


class Reference(Callback):
    """The average in float64."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.average = self.weights_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if step_ends(trainer, batch_idx):
            decay = min(DECAY, (1 + trainer.global_step) / (10 + trainer.global_step))
            for name, now in self.weights_of(pl_module).items():
                self.average[name] = decay * self.average[name] + (1 - decay) * now

    def weights_of(self, pl_module) -> dict[str, torch.Tensor]:
        return {name: p.detach().double() for name, p in pl_module.model.named_parameters() if p.requires_grad}


def test_weights_in_bf16_are_averaged_in_float32(tmp_path):
    words = ["--run.precision", "bf16-true", "--optim.ema", str(DECAY), "--run_dir", str(tmp_path / "run")]
    fit(parse_recipe(["--config", str(write_text_recipe(tmp_path)), *words]), callbacks=[reference := Reference()])
    average = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[0])["callbacks"]["MovingAverage"]
    assert average.keys() == reference.average.keys()
    for name, exact in reference.average.items():  # float32 rounds each of the 12 steps
        torch.testing.assert_close(average[name].double(), exact, rtol=1e-5, atol=1e-7)


def test_parts_of_which_a_rank_has_nothing_are_saved_each_as_its_own():
    """Of a small tensor in parts some ranks have none: all such lie at address 0."""
    module, model = LightningModule(), nn.Module()
    module.model = model
    model.cls, model.gate = nn.Parameter(torch.empty(0, 1, 64)), nn.Parameter(torch.empty(0))
    model.embed, model.frozen = nn.Embedding(3, 2), nn.Parameter(torch.ones(1), requires_grad=False)
    model.head = nn.Linear(2, 3, bias=False)
    model.head.weight = model.embed.weight
    average, trainer = MovingAverage(DECAY), Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    average.on_train_start(trainer, module)
    before = model.embed.weight.detach().clone()
    average.average["embed.weight"] += 1
    average.on_validation_start(trainer, module)
    checkpoint = {"state_dict": module.state_dict()}
    average.on_save_checkpoint(trainer, module, checkpoint)
    saved = checkpoint["state_dict"]
    assert {name: saved[f"model.{name}"].shape for name in ("cls", "gate", "frozen")} == {
        "cls": (0, 1, 64),
        "gate": (0,),
        "frozen": (1,),
    }
    assert saved["model.embed.weight"].equal(before) and saved["model.head.weight"].equal(before)
    assert not model.embed.weight.equal(before)
