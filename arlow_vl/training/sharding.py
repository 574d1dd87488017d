"""Sharding of a model over several devices: FSDP2, tensor parallelism by the model's own plan, or both.

The devices of a run form a mesh of replicas x shards x tensor. A unit, whose tensors are gathered and freed together,
is a decoder layer with its cross block, or an encoder block; the rest of the model is the last unit. Every process must
run every unit as often as the others, or all wait for ever. So a process whose batch has no image encodes a blank one,
which has no effect.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from arlow_vl.training.checkpoint_io import read_checkpoint
from arlow_vl.training.ranks import is_first, whole
from arlow_vl.training.settings import EngineConfig
from arlow_vl.training.sharded_checkpoints import REST, Like, ShardedWriter, in_parts_like, read_sharded


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with our mesh, and with checkpoints that any number of processes can read."""

    def __init__(self, engine: EngineConfig) -> None:
        super().__init__(data_parallel_size=engine.data_ranks, tensor_parallel_size=engine.tensor_parallel)
        self.engine = engine
        self.writer: ShardedWriter | None = None

    def setup_environment(self) -> None:
        super().setup_environment()
        self.writer = ShardedWriter()

    def shard(self, model: nn.Module, *, precision: str, encodes: bool) -> None:
        """Shards the model in place. `encodes` is True if batches may have pixels, so that encoder blocks run."""
        shard(model, mesh_of(self.engine, self.root_device.type), precision=precision, encodes=encodes)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Copies the tensors and returns; the rest happens in the background."""
        assert self.writer is not None
        self.writer.begin(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint that any engine with any number of processes has written.

        The tensors of a folder are not hashed again: the first process has verified all of it (`newest_good`), and each
        reads only its own shards.
        """
        like = Like(self.lightning_module.model, self.optimizers)
        path = Path(checkpoint_path)
        if path.is_dir():
            return read_sharded(read_checkpoint(path / REST), path, like)
        return in_parts_like(read_checkpoint(path), like)

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.wait()
        super().teardown()


def mesh_of(engine: EngineConfig, device_type: str) -> DeviceMesh:
    """Returns the device mesh. Consecutive ranks form tensor-parallel groups, these form shards, and these replicas."""
    shards = engine.data_ranks // engine.replicas
    sizes, names = (engine.replicas, shards, engine.tensor_parallel), ("replicate", "shard", "tensor")
    return init_device_mesh(device_type, sizes, mesh_dim_names=names)


def shard(model: Any, mesh: DeviceMesh, *, precision: str, encodes: bool) -> None:
    """Shards a model, which every process has built, in place; the values are those of the first process.

    Raises:
        ValueError: the attention heads cannot be split over the tensor-parallel devices.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    if mesh["tensor"].size() > 1:
        share_products(model, mesh["tensor"])
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16-mixed" else {}
    settings: dict[str, Any] = {
        "mesh": mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"],
        # No cast of inputs: rotary angles must not be rounded.
        "mp_policy": MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False),
        "reshard_after_forward": True,
    }
    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    if norms and dtypes and not keeps_resolution(model):
        # One unit in float32, the dtype of their statistics: batch norms allow no mixture.
        fully_shard(norms, **settings | {"mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False)})
    for unit in units_of(model, encodes=encodes):
        fully_shard(unit, **settings)
    fully_shard(model, **settings)
    if hasattr(model.model, "vision"):
        BlankImages(model.model, encodes=encodes)


def keeps_resolution(model: Any) -> bool:
    """Returns True if images keep their own sizes, so that the encoder runs once for each size in a batch."""
    return bool((model.config.vision_config.transform or {}).get("max_patches"))


def units_of(model: Any, *, encodes: bool) -> Iterator[nn.Module]:
    """Yields the units: decoder layers, then encoder blocks, or the whole encoder if no batch has pixels.

    If images keep their own sizes (`keeps_resolution`), processes run the encoder a different number of times. Then it
    is part of the last unit, the rest of the model.
    """
    inner = model.model
    encoder = getattr(inner, "vision", None)
    yield from (inner if encoder is None else inner.language_model).layers
    if encoder is None:
        return
    if not encodes:
        yield encoder
    elif not keeps_resolution(model):
        blocks = getattr(encoder.backbone, "blocks", None)
        yield from blocks if blocks is not None else ()


class BlankImages:
    """Hooks that encode a blank image for a batch without images, and pass it to the decoder layers.

    No text attends to it, so its gradients are zero. But the units run, and their gradients arrive, in the same order
    as on a process with images, and communication is matched by order alone.
    """

    def __init__(self, model: Any, *, encodes: bool) -> None:
        self.encodes = encodes
        self.states: Tensor | None = None
        model.register_forward_pre_hook(self.encode, with_kwargs=True)
        for layer in model.language_model.layers:  # before FSDP2's own hook, which inspects the inputs
            layer.register_forward_pre_hook(self.hand_over, prepend=True)

    def encode(self, model: Any, args: Any, inputs: dict[str, Any]) -> None:
        came = [inputs.get(name) for name in ("pixel_values", "image_features", "encoder_hidden_states")]
        self.states = None
        if any(images is not None and len(images) for images in came):
            return
        encoder, kind = model.vision, {"dtype": model.projector.dtype, "device": model.device}
        tokens = encoder.num_patches + encoder.num_kept_prefix_tokens
        shape = (1, 3, *encoder.image_size) if self.encodes else (1, tokens, encoder.embed_dim)
        name = "pixel_values" if self.encodes else "image_features"
        self.states = model.encode_images(**{name: torch.zeros(shape, **kind)}).states.flatten(0, -2)

    def hand_over(self, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.states is None else (args[0], self.states, *args[2:])


def share_products(model: Any, mesh: DeviceMesh) -> None:
    """Applies tensor parallelism, in place, by the plan in the model's configuration, as transformers does.

    Raises:
        ValueError: the number of heads is not a multiple of the devices.
    """
    from transformers.distributed import DistributedConfig
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    config = model.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if getattr(config, name) % mesh.size():
            raise ValueError(
                f"run.engine.tensor_parallel is {mesh.size()}, but {name} is {getattr(config, name)}, no multiple of it"
            )
    plan, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=mesh.size()))
    known = dict(model.named_modules()) | dict(model.named_parameters())  # the head's weight is the embedding's
    apply_tensor_parallelism(model, mesh, {name: way for name, way in plan.items() if name in known})
    model.tie_weights()


def make_whole(model: nn.Module) -> None:
    """Gathers the model's tensors in the memory of the first process for saving; the others lose theirs.

    All processes must call it.
    """
    made: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in made:
                tensor = whole(parameter.detach())
                kept = tensor.cpu() if is_first() else torch.empty(0)
                made[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        if isinstance(module, FSDPModule):  # undoes the class that fully_shard has put in front
            module.__class__ = type(module).__mro__[2]
