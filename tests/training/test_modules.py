"""One optimizer step over batches of unequal many labels is that of one batch that holds them all."""

import copy

import pytest
import torch
from lightning.pytorch import Callback

from arlow_vl.data.prompts import IGNORED
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import tiny_tokenizer, write_text_recipe


class Gradients(Callback):
    """The gradients as the optimizer sees them, and the loss that is written down, of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.exact = copy.deepcopy(pl_module).double()

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step != len(self.steps) + 1:
            return
        found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append(found)
        self.losses.append(pl_module.record.loss.item())


def rows_with_labels(*counts: int) -> dict[str, torch.Tensor]:
    """A row of 32 ids for each count, of which so many labels count."""
    dice = torch.Generator().manual_seed(sum(counts))
    ids = torch.randint(20, len(tiny_tokenizer()), (len(counts), 32), generator=dice)
    labels = torch.full_like(ids, IGNORED)
    for row, count in enumerate(counts):
        labels[row, 32 - count :] = ids[row, 32 - count :]
    return {"input_ids": ids, "labels": labels, "keys": [str(count) for count in counts], "num_labels": sum(counts)}


@pytest.fixture
def step_of(tmp_path, monkeypatch):
    """Runs a step over these batches; gives its gradients and its loss."""

    def step_of(name: str, *batches) -> tuple[dict[str, torch.Tensor], float]:
        run = {"max_steps": 1, "validate_every": 1, "checkpoint_every": 1, "threads": 1, "validation_samples": 1}
        run["accumulate_grad_batches"] = len(batches)
        model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        settings = {"run": run, "optim": {"lr": 1e-3, "grad_clip": 1e9}, "run_dir": str(tmp_path / name)}
        config = write_text_recipe(tmp_path, model=model | {"num_key_value_heads": 1}, **settings)
        loader = "arlow_vl.data.loader.ResumableLoader._read"
        coming = iter(batches)
        monkeypatch.setattr(loader, lambda *_: (next(coming), []))
        step_of.last = gradients = Gradients()
        fit(parse_recipe(["--config", str(config)]), callbacks=[gradients])
        assert len(gradients.steps) == 1
        return gradients.steps[0], gradients.losses[0]

    return step_of


def joined(*batches) -> dict:
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in ("input_ids", "labels")}
    counts = {"num_labels": sum(batch["num_labels"] for batch in batches)}
    return whole | counts | {"keys": [key for batch in batches for key in batch["keys"]]}


def test_batches_of_36_and_4_labels_give_the_gradient_of_all_40(step_of):
    many, few = rows_with_labels(18, 18), rows_with_labels(4)
    gradients, loss = step_of("parts", many, few)
    expected, whole_loss = step_of("whole", joined(many, few))
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_batch_without_labels_adds_nothing(step_of):
    some, none = rows_with_labels(12, 7), rows_with_labels(0)
    gradients, loss = step_of("parts", some, none)
    expected, whole_loss = step_of("whole", some)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "counts", [[(18, 18), (4,)], [(18, 18), (4,), (0, 0)], [(0,), (31, 1), (5,)], [(1,), (31,) * 4]]
)
def test_loss_and_gradient_are_those_of_a_float64_reference(step_of, counts):
    batches = [rows_with_labels(*some) for some in counts]
    gradients, loss = step_of("parts", *batches)
    exact = step_of.last.exact.train()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        scores = exact.model(batch["input_ids"], use_cache=False).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        total = total - scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels >= 0].sum()
    reference = total / sum(map(sum, counts))
    reference.backward()
    assert loss == pytest.approx(reference.item(), rel=2e-6)
    expected = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():  # float32 sums over 300 words and 40 labels
        torch.testing.assert_close(gradient.double(), expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("counts", [[(0, 0)], [(0,), (0, 0)]])
def test_a_step_none_of_whose_labels_count_is_no_fault_and_has_no_gradient(step_of, counts):
    gradients, loss = step_of("nothing", *(rows_with_labels(*some) for some in counts))
    assert loss == 0.0
    assert all(not gradient.any() for gradient in gradients.values())
