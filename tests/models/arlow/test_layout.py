"""A layout that came ready made gives what the model finds out by itself, and nobody waits for the device."""

import contextlib
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.layout import BatchLayout
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow.segments import SegmentTable
from tests.conftest import open_gates
from tests.models.arlow.test_attention_parity import varlen_by_definition
from tests.models.host_reads import META, host_reads_refused

IMAGE = 7
WITHOUT_LOGITS = {"use_cache": False, "skip_logits": True}


@st.composite
def batches(draw):
    """(ids, positions, lengths of the images, image_index or None) of rows of packed documents, some with images."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(2, 14))
    kinds = st.lists(st.sampled_from(draw(st.sampled_from(["w", "wwi", "wwwwwi"]))), min_size=width, max_size=width)
    ids = torch.tensor([[IMAGE if kind == "i" else 20 + i for i, kind in enumerate(draw(kinds))] for _ in range(rows)])
    positions = []
    for _ in range(rows):
        starts = draw(st.lists(st.booleans(), min_size=width, max_size=width))
        row: list[int] = []
        for starts_here in starts:
            row.append(0 if starts_here or not row else row[-1] + 1)
        positions.append(row)
    count = int((ids == IMAGE).sum())
    index, images = None, count
    if count and draw(st.booleans()):
        chosen = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
        numbers = sorted(set(chosen))
        index, images = torch.tensor([numbers.index(number) for number in chosen]), len(numbers)
    lengths = draw(st.lists(st.sampled_from([1, 2, 3, 40]), min_size=images, max_size=images))
    return ids, torch.tensor(positions), torch.tensor(lengths, dtype=torch.long), index


def inputs_of(config, case) -> tuple[dict, BatchLayout]:
    ids, positions, lengths, index = case
    inputs = {"input_ids": ids, "position_ids": positions, "labels": ids.roll(1, 1)}
    if not len(lengths):
        return inputs, BatchLayout.of_batch(config, ids, positions)
    states = torch.randn(int(lengths.sum()), config.hidden_size)
    inputs |= {"encoder_hidden_states": states, "encoder_lengths": lengths}
    inputs |= {} if index is None else {"image_index": index}
    return inputs, BatchLayout.of_batch(config, ids, positions, lengths, index)


@functools.cache
def built(sees: str = "last_group", device: str = "cpu") -> ArlowForCausalLM:
    config = ArlowConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        cross_attention_interval=2,
        cross_attention_sees=sees,
    )
    model = ArlowForCausalLM(config)
    open_gates(model)
    return model.to(device).train()


def loss_and_gradients(model, inputs, **more) -> list[torch.Tensor]:
    model.zero_grad()
    inputs = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}
    loss = model(**inputs, **WITHOUT_LOGITS, **more).loss
    loss.backward()
    states = [inputs[name].grad for name in ("encoder_hidden_states",) if name in inputs]
    return [loss.detach(), *states, *(p.grad for p in model.parameters() if p.grad is not None)]


KERNELS = {"sdpa": contextlib.nullcontext, "eager": contextlib.nullcontext, "arlow": varlen_by_definition}


@settings(max_examples=20)
@pytest.mark.parametrize("sees", ["last_group", "all_previous"])
@pytest.mark.parametrize("kernel", KERNELS)
@given(case=batches())
def test_loss_and_gradients_are_the_same_bit_for_bit(kernel, sees, case):
    model = built(sees)
    model.set_attn_implementation(kernel)
    inputs, layout = inputs_of(model.config, case)
    with KERNELS[kernel]():
        expected = loss_and_gradients(model, inputs)
        found = loss_and_gradients(model, inputs, layout=layout)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)  # NaN: no label counts


@settings(max_examples=15)
@pytest.mark.parametrize("sees", ["last_group", "all_previous"])
@given(case=batches())
def test_a_training_step_waits_for_no_device(sees, case):
    model = built(sees, "meta")
    inputs, layout = inputs_of(model.config, case)
    layout = layout.to(META)
    inputs = {name: x if name == "encoder_lengths" else x.to(META) for name, x in inputs.items()}
    with host_reads_refused():
        model(**inputs, layout=layout, **WITHOUT_LOGITS, num_items_in_batch=1).loss.backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=15)
@given(case=batches())
def test_a_training_step_waits_for_no_gpu(dtype, case):
    model = built("last_group", "cuda").to(dtype)
    inputs, layout = inputs_of(model.config, case)
    inputs = {
        name: x if name == "encoder_lengths" else x.to("cuda", dtype if x.is_floating_point() else None)
        for name, x in inputs.items()
    }
    layout = layout.to("cuda")
    model(**inputs, layout=layout, **WITHOUT_LOGITS, num_items_in_batch=1).loss.backward()  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**inputs, layout=layout, **WITHOUT_LOGITS, num_items_in_batch=1).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_without_a_layout_the_device_is_asked():
    case = torch.tensor([[20, IMAGE, 22]]), torch.tensor([[0, 1, 2]]), torch.tensor([2]), None
    model = built(device="meta")
    inputs = {name: x.to(META) for name, x in inputs_of(model.config, case)[0].items()}
    with host_reads_refused(), pytest.raises((RuntimeError, NotImplementedError)):
        model(**inputs, **WITHOUT_LOGITS)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique_consecutive(),
        lambda x: torch.repeat_interleave(x, x),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.tensor([1, 2, 3]).to(META),
        lambda x: x + torch.tensor([1, 2, 3], device=META),
        lambda x: x.copy_(torch.tensor([1, 2, 3])),
    ],
    ids="item bool tolist mask nonzero unique repeat list index to tensor copy".split(),
)
def test_whatever_reads_the_device_is_noticed(read):
    with host_reads_refused(), pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(3, dtype=torch.long, device=META))


def test_all_that_was_computed_goes_to_the_device(small_config):
    ids = torch.tensor([[IMAGE, 20, 21, IMAGE, 22, 23], [24, 25, IMAGE, 26, 27, 28]])
    layout = BatchLayout.of_batch(small_config, ids, torch.arange(6).expand(2, 6), torch.tensor([2, 40, 3]))
    moved = layout.to(META)
    assert isinstance(layout.segments, SegmentTable) and isinstance(moved.segments, SegmentTable)
    assert len(moved.segments.padded_runs) > 1 and moved.segments.padded_order.device == META
    for mine, theirs in zip(moved.segments.padded_runs, layout.segments.padded_runs, strict=True):
        assert mine.key_runs.is_ragged == theirs.key_runs.is_ragged
        assert mine.query_index.device == mine.query_runs.cu_seqlens.device == META
    assert layout.documents.device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_cache": True}, "give use_cache=False"),
        ({"attention_mask": torch.ones(1, 4)}, "layout stands in for attention_mask and segments"),
        ({"position_ids": None}, "the position_ids it is made of"),
        (
            {"input_ids": torch.tensor([[20, IMAGE, 21]]), "position_ids": torch.arange(3)[None]},
            r"\(1, 3\) with 2 came",
        ),
        ({"encoder_hidden_states": torch.ones(1, 3, 64)}, r"2 encoder tokens, and \(1, 4\) with 3 came"),
        ({"encoder_hidden_states": None}, r"2 encoder tokens, and \(1, 4\) with 0 came"),
        ({"encoder_attention_mask": torch.ones(1, 2)}, "without a mask"),
    ],
)
def test_a_layout_of_another_call_is_refused(open_model, change, sentence):
    ids, positions = torch.tensor([[20, IMAGE, 21, 22]]), torch.arange(4)[None]
    layout = BatchLayout.of_batch(open_model.config, ids, positions, torch.tensor([2]))
    inputs = {"input_ids": ids, "position_ids": positions, "encoder_hidden_states": torch.ones(1, 2, 64)}
    with pytest.raises(ValueError, match=sentence):
        open_model(**({"use_cache": False} | inputs | change), layout=layout)
