import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vision.encoder import VisionEncoder
from vision.forms.native_resolution import patchify
from vision.weights import WeightsError, load_encoder_weights

WITH_CLASS_TOKEN, WITH_REGISTER, WITH_ATTENTION_POOL = "test_vit", "test_vit2", "test_vit3"
ROTARY = "eva02_tiny_patch14_224"
# One of each kind that people have weights of; the widths are theirs, so they are looked at on the meta device too.
DINOV2, DINOV2_REGISTERS, DINOV3 = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_tiny_patch16_dinov3_qkvb",
)
SIGLIP, NAFLEX = "vit_base_patch16_siglip_224", "naflexvit_base_patch16_gap"
MAPS = ("test_efficientnet", "test_resnet", "test_convnext", "test_mambaout")  # the last one has channels last
SIZES = {ROTARY: 56, DINOV2: 56, DINOV2_REGISTERS: 56}


def size_of(name):
    return SIZES.get(name, 64)


def bare_model(name, image_size=None):
    """The timm model with a head, as a stranger would build it, with every tensor away from its initial value."""
    takes_size = timm.get_pretrained_cfg(name).fixed_input_size
    model = timm.create_model(name, **({"img_size": image_size or size_of(name)} if takes_size else {})).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) / 10)
    return model


def encoder_with(model, name, tmp_path, **kwargs):
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = VisionEncoder(name, **{"image_size": size_of(name)} | kwargs).eval()
    load_encoder_weights(encoder, tmp_path / "weights.safetensors")
    return encoder


def tensors(encoder):
    return {key: value.clone() for key, value in encoder.state_dict().items()}


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, WITH_REGISTER, WITH_ATTENTION_POOL, ROTARY])
def test_a_transformer_gives_the_patch_tokens_that_timm_computes(name, tmp_path):
    model = bare_model(name)
    images = torch.randn(2, 3, size_of(name), size_of(name))
    tokens = encoder_with(model, name, tmp_path)(images)
    assert torch.equal(tokens, model.forward_features(images)[:, model.num_prefix_tokens :])


REAL = {DINOV2: 1, DINOV2_REGISTERS: 5, DINOV3: 5, ROTARY: 1, SIGLIP: 0, NAFLEX: 4}


@pytest.mark.parametrize(("name", "prefix"), REAL.items())
def test_each_family_gives_timms_tokens_of_an_image_that_is_not_square(name, prefix, tmp_path):
    """timm's own model, built for just this size out of the same weights, is the reference."""
    size = size_of(name)
    encoder = shallow(name, image_size=size).eval()
    with_prefix = shallow(name, image_size=size, prefix_tokens=True).eval()
    with_prefix.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 3, size, 2 * size)
    expected = reference(name, encoder, (size, 2 * size)).forward_features(images)
    patches = 2 * (size // encoder.patch_size) ** 2
    assert with_prefix(images).shape[1] == prefix + patches
    # timm interpolates positions for each image, or once when the model is built
    torch.testing.assert_close(with_prefix(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(images), expected[:, prefix:], atol=1e-5, rtol=1e-4)


def shallow(name, **kwargs):
    """Two blocks are as good as twelve for what is tested, and six times as fast; the others get no weights at all."""
    with torch.device("meta"):
        encoder = VisionEncoder(name, **kwargs)
    encoder.backbone.blocks = encoder.backbone.blocks[:2]
    encoder.to_empty(device="cpu").init_non_persistent_buffers()
    for tensor in encoder.state_dict().values():  # near ones what scales and shifts, small what multiplies
        tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(std=0.02)
    return encoder


def reference(name, encoder, size):
    takes_size = timm.get_pretrained_cfg(name).fixed_input_size
    model = timm.create_model(name, num_classes=0, depth=2, **({"img_size": size} if takes_size else {})).eval()
    state = encoder.backbone.state_dict()
    if "pos_embed" in state and state["pos_embed"].shape != model.state_dict()["pos_embed"].shape:
        state["pos_embed"] = timm.layers.resample_abs_pos_embed(
            state["pos_embed"],
            new_size=model.patch_embed.grid_size,
            num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
        )
    model.load_state_dict(state, strict=False)
    return model


def test_naflexvit_reads_its_weights_and_is_timms(tmp_path):
    """Two blocks of it: the file then lacks the others, which this encoder does without."""
    model = timm.create_model(NAFLEX, depth=2).eval()
    for tensor in model.state_dict().values():
        tensor.add_(torch.rand_like(tensor) / 10)
    encoder = encoder_with(model, NAFLEX, tmp_path, blocks=(0, 1))
    images = torch.randn(1, 3, 64, 96)
    expected = model.forward_intermediates(images, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(encoder(images), torch.cat(expected, dim=-1))


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, WITH_REGISTER, ROTARY])
def test_prefix_tokens_of_named_blocks_stand_in_front_of_their_patches(name):
    encoder = VisionEncoder(name, image_size=size_of(name), blocks=(1, 3), prefix_tokens=True).eval()
    without = VisionEncoder(name, image_size=size_of(name), blocks=(1, 3)).eval()
    without.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 3, size_of(name), size_of(name))
    prefix = encoder.backbone.num_prefix_tokens
    assert encoder.num_patches == without.num_patches + prefix
    assert torch.equal(encoder(images)[:, prefix:], without(images))


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, ROTARY, DINOV3, NAFLEX])
def test_images_in_their_native_resolution_are_encoded_as_if_each_were_alone(name):
    encoder = shallow(name, image_size=4 * (14 if name == ROTARY else 16)).eval()
    patch = encoder.patch_size
    images = [torch.randn(3, rows * patch, columns * patch) for rows, columns in [(2, 3), (1, 5), (3, 2), (2, 3)]]
    tokens, lengths = encoder.forward_native(*patchify(images, patch))
    assert lengths.tolist() == [6, 5, 6, 6]
    alone = torch.cat([encoder(image[None])[0] for image in images])
    torch.testing.assert_close(tokens, alone, atol=1e-5, rtol=1e-4)  # a batch of two is another shape of product


def test_an_encoder_can_be_built_for_images_that_are_not_square():
    encoder = VisionEncoder(SIGLIP, image_size=(32, 64))
    assert encoder.data_config["input_size"] == (3, 32, 64) and encoder.num_patches == 8


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, ROTARY, NAFLEX])
@pytest.mark.parametrize("blocks", [(), (0, 1)])
def test_gradient_checkpointing_keeps_the_gradients_and_computes_blocks_twice(name, blocks):
    encoder = shallow(name, image_size=size_of(name), blocks=blocks).train()
    images, calls = torch.randn(1, 3, size_of(name), size_of(name)), []
    encoder.backbone.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    gradients = []
    for enable in (False, True):
        encoder.gradient_checkpointing = enable
        encoder.zero_grad()
        encoder(images).pow(2).sum().backward()
        gradients.append(encoder.backbone.blocks[0].attn.proj.weight.grad.clone())
    assert len(calls) == 3
    torch.testing.assert_close(*gradients)


def test_a_frozen_encoder_keeps_no_memory_for_a_backward_pass():
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=32).requires_grad_(False).train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        encoder(torch.randn(1, 3, 32, 32))
    assert not saved


def test_the_transform_is_timms_data_config_and_what_is_said_besides():
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=64)
    transform = encoder.image_transform(max_patches=9, background=(1, 2, 3))
    assert (transform.patch_size, transform.max_patches, transform.background) == (16, 9, (1, 2, 3))
    assert transform.input_size == (3, 64, 64) and transform.mean == encoder.data_config["mean"]


@pytest.mark.parametrize("name", MAPS)
def test_a_feature_map_becomes_one_token_a_place_row_by_row(name, tmp_path):
    model = bare_model(name)
    images = torch.randn(2, 3, 96, 64)
    tokens = encoder_with(model, name, tmp_path)(images)
    features = model.forward_features(images)
    if name == "test_mambaout":
        features = features.permute(0, 3, 1, 2)
    places = [features[:, :, row, column] for row in range(3) for column in range(2)]
    torch.testing.assert_close(tokens, torch.stack(places, dim=1))  # channels-last kernels sum in another order


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, WITH_ATTENTION_POOL, ROTARY])
def test_named_blocks_are_normed_and_joined_on_the_last_axis(name, tmp_path):
    model = bare_model(name)
    outputs = {}
    for index in (1, 3):
        model.blocks[index].register_forward_hook(lambda _, __, output, index=index: outputs.update({index: output}))
    images = torch.randn(2, 3, size_of(name), size_of(name))
    tokens = encoder_with(model, name, tmp_path, blocks=(3, 1))(images)
    model.forward_features(images)
    expected = [model.norm(outputs[index])[:, model.num_prefix_tokens :] for index in (1, 3)]
    assert torch.equal(tokens, torch.cat(expected, dim=-1))


def test_the_last_block_named_is_the_default(tmp_path):
    model, images = bare_model(WITH_CLASS_TOKEN), torch.randn(1, 3, 64, 64)
    default = encoder_with(model, WITH_CLASS_TOKEN, tmp_path)
    named = encoder_with(model, WITH_CLASS_TOKEN, tmp_path, blocks=(5,))
    assert torch.equal(named(images), default(images))


def test_blocks_after_the_last_named_one_are_not_kept():
    assert len(VisionEncoder(WITH_CLASS_TOKEN, blocks=(1,)).backbone.blocks) == 2


def test_a_stage_of_a_convolutional_net_can_be_named(tmp_path):
    model, images = bare_model("test_resnet"), torch.randn(1, 3, 64, 64)
    tokens = encoder_with(model, "test_resnet", tmp_path, blocks=(2,))(images)
    stage = model.forward_intermediates(images, indices=[2], intermediates_only=True)[0]
    torch.testing.assert_close(tokens, stage.flatten(2).mT)


@pytest.mark.parametrize("name", MAPS)
def test_finer_stages_lie_folded_behind_each_other_in_the_places_of_the_coarsest(name, tmp_path):
    model, images = bare_model(name), torch.randn(2, 3, 64, 128)
    tokens = encoder_with(model, name, tmp_path, blocks=(2, 1))(images)
    fine, coarse = model.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    rows, columns = coarse.shape[2:]
    assert fine.shape[2:] == (2 * rows, 2 * columns)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        cells = fine[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        expected = [
            (part - part.mean(1, keepdim=True)) / part.std(1, correction=0, keepdim=True)
            for part in (cells, coarse[:, :, row, column])
        ]
        torch.testing.assert_close(tokens[:, place], torch.cat(expected, dim=1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "blocks", "fine_side", "side"),
    [("test_resnet", 72, (2, 3), 9, 5), ("densenet121", 200, (2, 4), 25, 6)],
)
def test_a_finer_stage_of_broken_places_ends_in_zeros_or_where_the_coarsest_ends(name, size, blocks, fine_side, side):
    encoder = VisionEncoder(name, image_size=size, blocks=blocks).eval()
    images = torch.randn(1, 3, size, size)
    fine = encoder.backbone.forward_intermediates(images, indices=[blocks[0]], intermediates_only=True)[0]
    fold = round(fine_side / side)
    assert fine.shape[2:] == (fine_side, fine_side) and encoder.num_patches == side**2
    padded = torch.zeros(1, fine.shape[1], fold * side, fold * side)
    kept = min(fine_side, fold * side)
    padded[:, :, :kept, :kept] = fine[:, :, :kept, :kept]
    cells = padded[:, :, -fold:, -fold:].flatten(1)
    expected = (cells - cells.mean(1, keepdim=True)) / cells.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(encoder(images)[:, -1, : cells.shape[1]], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (WITH_CLASS_TOKEN, {"image_size": 64}),
        (WITH_REGISTER, {"blocks": (0, 4), "image_size": 32}),
        (WITH_ATTENTION_POOL, {}),
        (ROTARY, {"image_size": 28}),
        *((name, {"image_size": 96}) for name in MAPS),
        ("test_efficientnet", {"blocks": (1,)}),
        ("test_efficientnet", {"blocks": (0, 2, 4), "image_size": 96}),
    ],
)
@pytest.mark.parametrize("prefix_tokens", [False, True])
def test_attributes_foretell_the_tokens(name, kwargs, prefix_tokens):
    encoder = VisionEncoder(name, prefix_tokens=prefix_tokens, **kwargs).eval()
    tokens = encoder(torch.randn(1, *encoder.data_config["input_size"]))
    assert tokens.shape[1:] == (encoder.num_patches, encoder.embed_dim)


@pytest.mark.parametrize(
    ("name", "image_size", "num_patches", "embed_dim"),
    [
        ("vit_small_patch14_dinov2", None, 37 * 37, 384),
        ("vit_small_patch14_reg4_dinov2", 224, 256, 384),
        ("vit_base_patch16_siglip_224", None, 196, 768),
        ("tf_efficientnet_lite0", 160, 25, 1280),
        ("convnext_tiny", 224, 49, 768),
        ("swin_tiny_patch4_window7_224", None, 49, 768),
    ],
)
def test_real_encoders_can_be_built_on_the_meta_device(name, image_size, num_patches, embed_dim):
    with torch.device("meta"):
        encoder = VisionEncoder(name, image_size=image_size)
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    assert (encoder.num_patches, encoder.embed_dim) == (num_patches, embed_dim)


def test_the_data_config_is_timms_at_the_chosen_size():
    encoder = VisionEncoder("test_efficientnet", image_size=96)
    expected = timm.data.resolve_model_data_config(timm.create_model("test_efficientnet"))
    assert encoder.data_config == expected | {"input_size": (3, 96, 96)}


@pytest.mark.parametrize("name", [ROTARY, "swin_tiny_patch4_window7_224"])
def test_tables_that_no_checkpoint_holds_can_be_computed_anew(name):
    encoder = VisionEncoder(name)
    tables = {key: value.clone() for key, value in encoder.named_buffers() if key not in encoder.state_dict()}
    for key in tables:
        encoder.get_buffer(key).zero_()
    encoder.init_non_persistent_buffers()
    assert len(tables) > 1
    assert all(torch.equal(encoder.get_buffer(key), value) for key, value in tables.items())


def test_a_frozen_encoder_records_no_graph():
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=32).requires_grad_(False)
    assert not encoder(torch.randn(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_an_encoder_with_one_trained_parameter_records_a_graph():
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=32).requires_grad_(False)
    encoder.backbone.norm.weight.requires_grad_(True)
    encoder(torch.randn(1, 3, 32, 32)).sum().backward()
    assert encoder.backbone.norm.weight.grad.any()


@pytest.mark.parametrize("frozen_first", [True, False])
def test_batch_statistics_of_a_frozen_encoder_do_not_move(frozen_first):
    encoder = VisionEncoder("test_efficientnet", image_size=32)
    for step in (encoder.requires_grad_, encoder.train) if frozen_first else (encoder.train, encoder.requires_grad_):
        step(step == encoder.train)
    before = tensors(encoder)
    encoder(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_a_frozen_encoder_stays_in_eval_mode_when_its_owner_trains():
    owner = nn.Sequential(VisionEncoder("test_efficientnet").requires_grad_(False).eval())
    assert owner.train()[0].backbone.training is False


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_batch_norms_of_an_encoder_that_trains_keep_their_statistics(name):
    owner = torch.nn.Sequential(VisionEncoder(name)).train()
    before = {key: value.clone() for key, value in owner.named_buffers()}
    pixels = torch.randn(2, 3, *owner[0].image_size)
    expected = owner.eval()(pixels)
    owner.train()(pixels).pow(2).sum().backward()
    assert owner[0].training
    assert any("running_var" in key for key in before)
    assert all(torch.equal(value, before[key]) for key, value in owner.named_buffers())
    assert all(parameter.grad is not None for parameter in owner.parameters())
    torch.testing.assert_close(owner.train()(pixels), expected)


def without_gradient(encoder, *images):
    for image in images:
        encoder(image).pow(2).sum().backward()
    return {name for name, parameter in encoder.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize("name", timm.list_models("test_*"))
@pytest.mark.parametrize("blocks", [(), (1,)])
def test_all_parameters_but_the_unread_ones_get_a_gradient(name, blocks):
    encoder = VisionEncoder(name, blocks=blocks).train()
    assert without_gradient(encoder, torch.randn(1, *encoder.data_config["input_size"])) == encoder.unread_parameters


@pytest.mark.parametrize("name", [WITH_REGISTER, "test_vit4", ROTARY])
def test_the_unread_parameters_are_the_same_in_native_resolution_and_with_gradient_checkpointing(name):
    encoder = VisionEncoder(name, image_size=size_of(name)).train()
    encoder.gradient_checkpointing = True
    images = [torch.randn(1, 3, rows * encoder.patch_size, 2 * encoder.patch_size) for rows in (1, 3)]
    assert without_gradient(encoder, *images) == encoder.unread_parameters
    assert {name.rpartition(".")[0] for name in encoder.unread_parameters} == {"backbone.fc_norm"}


def test_a_net_whose_stem_breaks_with_channels_last_trains():
    """Otherwise torch writes beyond a buffer in the backward pass, which ends the process at once at this size."""
    encoder = VisionEncoder("fastvit_t8").train()
    encoder(torch.randn(1, 3, *encoder.image_size)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not encoder.takes_channels_last and VisionEncoder("test_resnet").takes_channels_last


def test_an_encoder_that_trains_can_be_in_train_mode():
    assert VisionEncoder("test_efficientnet").eval().train().backbone.training


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("test_vitt", {}, "did you mean test_vit"),
        ("test_vit.absent", {}, "without the tag"),
        ("zzzz", {}, r"timm.list_models\(\)"),
        ("hf-hub:timm/test_vit", {}, "timm has no model"),
        (WITH_CLASS_TOKEN, {"blocks": (6,)}, r"6 blocks.*\[6\]"),
        (WITH_CLASS_TOKEN, {"blocks": (-1,)}, r"6 blocks.*\[-1\]"),
        (WITH_CLASS_TOKEN, {"blocks": (1, 1)}, r"6 blocks.*\[1, 1\]"),
        (WITH_CLASS_TOKEN, {"image_size": 60}, "multiple of 16"),
        (WITH_CLASS_TOKEN, {"image_size": 0}, "must be positive"),
        ("mvitv2_tiny", {"blocks": (2, 3)}, "cannot give blocks"),
        ("pit_ti_224", {}, "no grid of patches"),
        ("crossvit_9_240", {}, "neither patch tokens nor one feature map"),
    ],
)
def test_what_timm_cannot_give_is_refused_by_name(name, kwargs, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        VisionEncoder(name, **kwargs)


def test_an_image_of_another_size_is_refused_by_a_net_of_fixed_size():
    with torch.device("meta"), pytest.raises(ValueError, match="224 x 224 pixels, got 224 x 112"):
        VisionEncoder("beit_base_patch16_224")(torch.zeros(1, 3, 224, 112))


@pytest.mark.parametrize(
    ("name", "patch_size", "message"),
    [
        ("pvt_v2_b0", None, r"no image of a single patch of 7 pixels, .*; set a larger patch_size"),
        ("test_convnext", 8, "no image of a single patch of 8 pixels"),
        ("beit_base_patch16_224", 16, "takes images of one size, so images cannot keep their resolution"),
        ("test_convnext", 0, "needs a positive patch_size"),
        (WITH_CLASS_TOKEN, 24, "sides are multiples of 16 pixels, got 24 x 24"),
    ],
)
def test_native_resolution_is_refused_where_a_single_patch_is_no_image(name, patch_size, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        VisionEncoder(name).image_transform(max_patches=64, patch_size=patch_size)


@pytest.mark.parametrize(("name", "patch_size"), [("pvt_v2_b0", 32), ("test_efficientnet", 8)])
def test_a_patch_that_the_net_takes_gives_any_net_native_resolution(name, patch_size):
    with torch.device("meta"):
        encoder = VisionEncoder(name).eval()
        assert encoder.image_transform(max_patches=64, patch_size=patch_size).patch_size == patch_size
        assert encoder(torch.empty(1, 3, patch_size, patch_size)).shape[1] == 1


def test_an_image_of_broken_patches_is_refused():
    with pytest.raises(ValueError, match="test_vit takes images whose sides are multiples of 16 pixels, got 64 x 40"):
        VisionEncoder(WITH_CLASS_TOKEN, image_size=64)(torch.zeros(1, 3, 64, 40))


def test_a_torch_checkpoint_in_a_training_loop_s_form_is_read(tmp_path):
    model = bare_model(WITH_CLASS_TOKEN)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "weights.pth")
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=64)
    load_encoder_weights(encoder, tmp_path / "weights.pth")
    assert torch.equal(encoder.backbone.pos_embed, model.pos_embed)


def test_weights_of_another_image_size_get_timms_resized_position_grid(tmp_path):
    model = bare_model(WITH_ATTENTION_POOL, image_size=96)
    encoder = encoder_with(model, WITH_ATTENTION_POOL, tmp_path, image_size=64)
    model.set_input_size(img_size=(64, 64))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder(images), model.forward_features(images)[:, 1:])


def test_batch_norm_counters_may_be_missing(tmp_path):
    model = bare_model("test_resnet")
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "weights.safetensors")
    encoder = VisionEncoder("test_resnet", image_size=64)
    load_encoder_weights(encoder, tmp_path / "weights.safetensors")
    assert torch.equal(encoder.backbone.bn1.running_var, model.bn1.running_var)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(WeightsError, match=r"arlow data fetch") as raised:
        load_encoder_weights(VisionEncoder(WITH_CLASS_TOKEN), tmp_path / "absent.safetensors")
    assert raised.value.exit_code == 4


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused_by_name(suffix, kept, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"weights\.{suffix} cannot be read"):
        load_encoder_weights(VisionEncoder("test_resnet"), path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    write_pickle(tmp_path / "weights.pth", {"conv1.weight": Evil()})
    with pytest.raises(WeightsError, match=r"weights\.pth cannot be read"):
        load_encoder_weights(VisionEncoder("test_resnet"), tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def spoil(state, fault):
    key = "blocks.2.attn.qkv.weight"
    if fault == "missing":
        del state[key]
    elif fault == "unknown":
        state["blocks.9.attn.qkv.weight"] = state[key].clone()
    elif fault == "shape":
        state[key] = state[key][:, :-1].contiguous()
    elif fault == "patch size":
        state["patch_embed.proj.weight"] = torch.zeros(64, 3, 14, 14)
    elif fault == "quantised":
        state[key] = state[key].to(torch.int8)
    else:
        state[key][3, 5] = float(fault)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"blocks\.2\.attn\.qkv\.weight is missing"),
        ("unknown", r"blocks\.9\.attn\.qkv\.weight is not a tensor of it"),
        ("shape", r"blocks\.2\.attn\.qkv\.weight has shape \[192, 63\], not \[192, 64\]"),
        ("patch size", r"patch_embed\.proj\.weight has shape"),
        ("quantised", r"blocks\.2\.attn\.qkv\.weight is of torch\.int8"),
        ("nan", r"blocks\.2\.attn\.qkv\.weight has values that are not finite"),
        ("-inf", r"blocks\.2\.attn\.qkv\.weight has values that are not finite"),
    ],
)
def test_unfit_weights_name_the_first_tensor_and_leave_the_encoder_as_it_was(fault, message, tmp_path):
    state = bare_model(WITH_CLASS_TOKEN).state_dict()
    spoil(state, fault)
    save_file(state, tmp_path / "weights.safetensors")
    encoder = VisionEncoder(WITH_CLASS_TOKEN, image_size=64)
    before = tensors(encoder)
    with pytest.raises(WeightsError, match=rf"weights\.safetensors does not fit test_vit: {message}"):
        load_encoder_weights(encoder, tmp_path / "weights.safetensors")
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", [WITH_CLASS_TOKEN, ROTARY, "test_efficientnet", "test_convnext"])
def test_weights_of_another_net_are_refused(name, tmp_path):
    save_file(timm.create_model("test_mambaout").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="is missing"):
        load_encoder_weights(VisionEncoder(name), tmp_path / "weights.safetensors")


def test_half_precision_weights_fill_a_float32_encoder(tmp_path):
    model = bare_model("test_resnet").half()
    encoder = encoder_with(model, "test_resnet", tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
