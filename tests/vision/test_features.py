import copy
import errno
import hashlib
import io
import os
import shutil
import time
from collections import namedtuple

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from tests.conftest import open_gates
from tests.outside_data import colourful, encoded
from vision import features
from vision.decoding.image import decode_image
from vision.encoder import VisionEncoder
from vision.features import DTYPES, FeatureCache, FeaturesError, encoder_fingerprint
from vision.forms.batches import pack_images, prepare_image
from vision.transform import ImageTransform

DiskUsage = namedtuple("DiskUsage", "total used free")


def image_bytes(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (colour % 256, colour * 40 % 256, 255 - colour % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def keyed(*contents):
    return [(hashlib.sha256(content).hexdigest(), content) for content in contents]


@pytest.fixture
def encoder():
    return VisionEncoder("test_resnet", image_size=32).requires_grad_(False).eval()


@pytest.fixture
def transform(encoder):
    return ImageTransform(encoder.data_config)


@pytest.fixture
def open_cache(encoder, transform, tmp_path):
    """Opens the cache of `encoder` in the same folder each time."""
    return lambda **kwargs: FeatureCache(tmp_path, encoder_fingerprint(encoder, transform), **kwargs)


@pytest.fixture
def fill(encoder, transform):
    def filled(cache, images, **kwargs):
        count = kwargs.pop("count", None) or len(images)
        return cache.fill(images, encoder, transform, count=count, **kwargs)

    return filled


@pytest.fixture
def images():
    return keyed(*map(image_bytes, range(7)))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 3)


def shas(images):
    return [sha256 for sha256, _ in images]


def chunks(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def count_encoded(encoder):
    counts = []
    encoder.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    return counts


def test_it_gives_what_the_encoder_gives_in_the_order_asked_for(open_cache, fill, images, encoder, transform):
    cache = open_cache()
    fill(cache, images)
    asked = [images[4], images[0], images[4]]
    pixels = torch.stack([transform(decode_image(data, name="")) for _, data in asked])
    # float16 keeps 11 bits of a number
    torch.testing.assert_close(cache.get(shas(asked))["image_features"], encoder(pixels), rtol=2**-11, atol=1e-5)


def test_tokens_come_as_float32(open_cache, fill, images):
    cache = open_cache()
    fill(cache, images)
    assert cache.get(shas(images))["image_features"].dtype == torch.float32


def test_a_step_in_mixed_precision_reads_it_too(open_cache, fill, images):
    """On a CPU autocast to bfloat16 refuses to join tensors in float16, in which features are stored."""
    cache = open_cache()
    fill(cache, images)
    keys = [key for key, _ in images]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cache.get(keys)["image_features"]
    assert torch.equal(mixed, cache.get(keys)["image_features"])


def test_a_float32_cache_is_exact(open_cache, fill, images, encoder, transform):
    cache = open_cache(dtype=torch.float32)
    fill(cache, images[:1])
    assert torch.equal(
        cache.get(shas(images[:1]))["image_features"],
        encoder(transform(decode_image(images[0][1], name=""))[None]),
    )


def test_an_opened_cache_has_what_another_one_wrote(open_cache, fill, images, small_chunks):
    cache = open_cache()
    fill(cache, images)
    assert len(chunks(cache)) == 3
    assert torch.equal(open_cache().get(shas(images))["image_features"], cache.get(shas(images))["image_features"])


def test_an_image_is_in_the_cache_once_it_is_filled(open_cache, fill, images):
    cache = open_cache()
    fill(cache, images[:2])
    assert images[1][0] in cache
    assert images[2][0] not in cache


def test_equal_bytes_are_encoded_once(open_cache, fill, images, encoder, small_chunks):
    counts = count_encoded(encoder)
    fill(open_cache(), [*images, *images[:5], images[0]])
    assert sum(counts) == len(images)


def test_what_is_there_is_not_encoded_again(open_cache, fill, images, encoder):
    fill(open_cache(), images[:5])
    counts = count_encoded(encoder)
    fill(open_cache(), images)
    assert sum(counts) == 2


def test_a_fill_that_was_cut_goes_on_to_the_same_tokens(open_cache, fill, images, encoder, small_chunks):
    def cut():
        yield from images[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(open_cache(), cut(), count=7)
    counts = count_encoded(encoder)
    resumed = open_cache()
    fill(resumed, images)
    assert sum(counts) == 4
    tokens = resumed.get(shas(images))["image_features"].clone()
    shutil.rmtree(resumed.folder)
    never_cut = open_cache()
    fill(never_cut, images)
    assert torch.equal(never_cut.get(shas(images))["image_features"], tokens)


def test_a_bad_image_is_reported_and_the_others_are_encoded(open_cache, fill, images):
    bad = keyed(b"no image", images[0][1][:40])
    cache = open_cache()
    refused = fill(cache, [bad[0], *images[:2], bad[1], *images[2:]])
    assert list(refused) == shas(bad)
    assert all(reason.isidentifier() for reason in refused.values())
    assert cache.get(shas(images))["image_features"].shape[0] == len(images)


def test_only_bad_images_write_nothing(open_cache, fill):
    cache = open_cache()
    assert len(fill(cache, keyed(b"a", b"b"))) == 2
    assert chunks(cache) == []


@pytest.mark.parametrize("at_once", [1, 5])
def test_batches_encoded_at_once_keep_their_images_apart(at_once, open_cache, fill, encoder, transform, monkeypatch):
    monkeypatch.setattr(features, "CPU_BATCH", 2)
    monkeypatch.setattr(features, "CPU_BATCHES", at_once)
    monkeypatch.setattr(torch, "get_num_threads", lambda: at_once)
    many = keyed(*map(image_bytes, range(40)))
    torn = keyed(b"no image")
    cache = open_cache(dtype=torch.float32)
    assert fill(cache, [*many[:21], *torn, *many[21:]]).keys() == {torn[0][0]}
    for start in range(0, 40, 2):
        pair = [prepare_image(transform, data, name="an image") for _, data in many[start : start + 2]]
        expected = encoder(pack_images(transform, pair)["pixel_values"])
        torch.testing.assert_close(cache.get(shas(many[start : start + 2]))["image_features"], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_batches_are_encoded_at_once_than_torch_has_threads(threads, open_cache, fill, encoder, monkeypatch):
    monkeypatch.setattr(features, "CPU_BATCH", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    running, most = [], []

    def begins(module, inputs):
        running.append(None)
        most.append(len(running))
        time.sleep(0.01)

    encoder.register_forward_pre_hook(begins)
    encoder.register_forward_hook(lambda module, inputs, output: running.pop())
    fill(open_cache(), keyed(*map(image_bytes, range(12))))
    assert max(most) == threads


def test_an_error_in_a_batch_ends_the_fill_and_its_threads(open_cache, fill, encoder, monkeypatch):
    monkeypatch.setattr(features, "CPU_BATCH", 1)
    calls = []

    def breaks_at_third(module, inputs, output):
        calls.append(len(output))
        if len(calls) == 3:
            raise RuntimeError("no memory")
        time.sleep(0.02)

    encoder.register_forward_hook(breaks_at_third)
    with pytest.raises(RuntimeError, match="no memory"):
        fill(open_cache(), keyed(*map(image_bytes, range(40))))
    encoded = len(calls)
    assert encoded < 40  # what waited for its turn is not encoded any more
    time.sleep(0.1)
    assert len(calls) == encoded


def test_progress_counts_every_image(open_cache, fill, images, small_chunks):
    fill(open_cache(), images[:2])
    calls = []
    fill(open_cache(), [*images, *keyed(b"no image")], on_progress=lambda done, count: calls.append((done, count)))
    assert calls == [(3, 8), (6, 8), (8, 8)]


def test_an_absent_image_is_named(open_cache, fill, images):
    cache = open_cache()
    fill(cache, images[:1])
    with pytest.raises(FeaturesError, match=f"1 of 2 images .{images[1][0][:12]} first"):
        cache.get(shas(images[:2]))


def test_features_of_another_encoder_are_named(open_cache, fill, images, tmp_path):
    cache = open_cache()
    fill(cache, images[:1])
    with pytest.raises(FeaturesError, match=f"features of other encoders.*: {cache.folder.name}"):
        FeatureCache(tmp_path, "f" * 64).get(shas(images[:1]))


def test_filling_with_another_encoder_is_refused(fill, images, tmp_path):
    with pytest.raises(FeaturesError, match="another encoder or preprocessing than test_resnet"):
        fill(FeatureCache(tmp_path, "f" * 64), images)


def test_features_are_stale_when_a_weight_the_preprocessing_or_the_image_changes(
    open_cache, fill, images, encoder, transform, tmp_path
):
    filled = open_cache()
    fill(filled, images[:1])
    name, sha256 = filled.folder.name, shas(images[:1])
    other = ImageTransform(encoder.data_config | {"mean": (0.1, 0.2, 0.3)})
    with pytest.raises(FeaturesError, match=f"other encoders, preprocessings or dtypes: {name}"):
        FeatureCache(tmp_path, encoder_fingerprint(encoder, other)).get(sha256)
    with pytest.raises(FeaturesError, match="fill the cache"):
        open_cache().get(shas(keyed(images[0][1] + b"changed")))
    next(encoder.parameters()).data.view(-1)[0] += 1e-3
    with pytest.raises(FeaturesError, match=f"other encoders, preprocessings or dtypes: {name}"):
        open_cache().get(sha256)
    with pytest.raises(FeaturesError, match="another encoder or preprocessing"):
        fill(filled, images)


def test_what_is_stored_has_the_dtype_asked_for_and_a_folder_of_its_own(open_cache, fill, images):
    caches = [open_cache(dtype=dtype) for dtype in DTYPES]
    for cache in caches:
        fill(cache, images)
        with safe_open(cache.folder / chunks(cache)[0], "pt") as file:
            assert file.get_tensor("features").dtype == cache.dtype
    assert len({cache.folder for cache in caches}) == len(DTYPES)
    exact = caches[2].get(shas(images))["image_features"]
    for cache in caches:
        # Half a unit in the last of the mantissa's bits, which float16 loses near 0.
        rtol = torch.finfo(cache.dtype).eps / 2
        torch.testing.assert_close(cache.get(shas(images))["image_features"], exact, rtol=rtol, atol=1e-7)


def test_other_dtypes_are_refused(open_cache):
    with pytest.raises(ValueError, match=r"float16, bfloat16, float32, not as torch\.int8"):
        open_cache(dtype=torch.int8)


def test_a_chunk_of_another_dtype_is_refused_by_name(open_cache, fill, images):
    wide, narrow = open_cache(dtype=torch.float32), open_cache()
    fill(wide, images)
    narrow.folder.mkdir()
    shutil.copy(wide.folder / chunks(wide)[0], narrow.folder)
    with pytest.raises(FeaturesError, match=r"chunk-\w+.safetensors holds torch.float32, not torch.float16"):
        open_cache().get(shas(images))


def test_two_fills_at_once_share_what_is_finished(open_cache, fill, images, encoder, small_chunks):
    def while_another_fills():
        yield from images[:5]
        fill(open_cache(), images)
        yield from images[5:]

    counts, cache = count_encoded(encoder), open_cache()
    fill(cache, while_another_fills(), count=len(images))
    assert sum(counts) == len(images)
    assert cache.get(shas(images))["image_features"].shape[0] == len(images)


def test_two_processes_that_write_the_same_chunk_do_no_harm(open_cache, fill, images, encoder, small_chunks):
    others = []

    def fill_first(module, inputs):  # the first has encoded nothing yet when the other has written everything
        if not others:
            others.append(open_cache())
            fill(others[0], images)

    encoder.register_forward_pre_hook(fill_first)
    cache = open_cache()
    fill(cache, images)
    for one in (cache, others[0], open_cache()):
        assert torch.equal(one.get(shas(images))["image_features"], cache.get(shas(images))["image_features"])
    assert len(chunks(cache)) == 3
    assert not open_cache().damaged


def test_a_chunk_that_another_process_took_away_is_computed_anew(open_cache, fill, images, small_chunks):
    fill(open_cache(), images)
    cache = open_cache()
    damage(cache.folder / chunks(cache)[0], "emptied")
    first, second = open_cache(), open_cache()
    fill(first, images)
    fill(second, images)  # which still holds the chunk for damaged and unlinks the mended one
    assert torch.equal(open_cache().get(shas(images))["image_features"], first.get(shas(images))["image_features"])


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(open_cache, fill, images):
    cache = open_cache()
    cache.folder.mkdir()
    remains, live = (cache.folder / f".chunk-0.safetensors.{name}.partial" for name in ("killed", "live"))
    for path in (remains, live):
        path.write_bytes(b"half")
    os.utime(remains, (0, 0))
    fill(cache, images)
    assert not remains.exists()
    assert live.exists()


SEVERAL_SIZES = [{"max_tiles": 4}, {"patch_size": 32, "max_patches": 9}]


@pytest.fixture(params=SEVERAL_SIZES, ids=["tiles", "native"])
def sized(request, encoder, tmp_path):
    """Images of several sizes, the transform that keeps them so, and a cache of their exact features."""
    transform = ImageTransform(encoder.data_config, **request.param)
    sizes = [(96, 32), (32, 32), (64, 90), (70, 30), (33, 200), (64, 64), (32, 64)]
    images = keyed(*(encoded(colourful(*size), "PNG") for size in sizes))
    cache = FeatureCache(tmp_path, encoder_fingerprint(encoder, transform), dtype=torch.float32)
    return images, transform, cache


def test_images_of_several_sizes_come_as_the_encoder_makes_them_of_each(sized, encoder, small_chunks):
    images, transform, cache = sized
    cache.fill(images, encoder, transform, count=len(images))
    reopened = FeatureCache(cache.folder.parent, cache.fingerprint, dtype=torch.float32)
    asked = [images[n] for n in (4, 0, 6, 4)]
    packed = pack_images(transform, [prepare_image(transform, data, name="") for _, data in asked])
    inputs = reopened.get(shas(asked))
    if transform.max_tiles > 1:
        features = encoder(packed["pixel_values"])
        assert torch.equal(inputs["tile_ids"], packed["tile_ids"])
        assert torch.equal(inputs["tiles_per_image"], packed["tiles_per_image"])
        assert len(set(inputs["tiles_per_image"].tolist())) > 1
    else:
        features, lengths = encoder.forward_native(packed["pixel_values"], packed["image_grids"])
        assert torch.equal(inputs["encoder_lengths"], lengths)
        assert torch.equal(inputs["image_grids"], packed["image_grids"])
        assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(inputs["image_features"], features)  # in other batches products round differently


def test_the_mean_of_an_image_is_over_all_its_tokens(sized, encoder):
    images, transform, cache = sized
    cache.fill(images, encoder, transform, count=len(images))
    means = cache.mean(shas(images))
    for (sha256, _), mean in zip(images, means, strict=True):
        features = cache.get([sha256])["image_features"]
        torch.testing.assert_close(mean, features.flatten(0, -2).mean(0))


def test_large_features_go_into_smaller_chunks(sized, encoder, monkeypatch):
    images, transform, cache = sized
    most = transform.max_patches or encoder.num_patches * (transform.max_tiles + 1)
    monkeypatch.setattr(features, "CHUNK_BYTES", 2 * most * encoder.embed_dim * 4)
    cache.fill(images, encoder, transform, count=len(images))
    assert len(chunks(cache)) == 4  # two images each, and one
    assert cache.mean(shas(images)).isfinite().all()


def test_a_chunk_without_lengths_has_a_row_for_each_image(open_cache, fill, images):
    """So were they written once, and nobody should have to encode again."""
    cache = open_cache()
    fill(cache, images)
    path = cache.folder / chunks(cache)[0]
    with safe_open(path, "pt") as file:
        kept, metadata = {"features": file.get_tensor("features").clone()}, file.metadata()
    path.unlink()
    save_file(kept, path, metadata)
    assert torch.equal(open_cache().get(shas(images))["image_features"], cache.get(shas(images))["image_features"])


LOSS_RTOL = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
"""float32: products of other batches may differ in the last bit. The halves keep 2^-12 and 2^-9 of a feature, of which
the loss shows a part: 1.2e-6 and 9.5e-6 were measured here."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_from_the_cache_gives_the_losses_of_training_from_pixels(dtype, small_config, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    open_gates(model)
    encoder = model.model.vision.requires_grad_(False)
    transform = ImageTransform(encoder.data_config)
    images = keyed(*(encoded(colourful(90, 70).rotate(60 * n), "PNG") for n in range(6)))
    cache = FeatureCache(tmp_path, encoder_fingerprint(encoder, transform), dtype=dtype)
    cache.fill(images, encoder, transform, count=6)
    ids = torch.randint(20, 300, (2, 8))
    ids[:, 1] = small_config.image_token_id

    def losses(model, inputs_of):
        optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.1)
        for pair in zip(images[::2], images[1::2], strict=True):
            loss = model(input_ids=ids, labels=ids, **inputs_of(pair)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    def pixels(pair):
        return {"pixel_values": torch.stack([prepare_image(transform, data, name="a") for _, data in pair])}

    expected = list(losses(copy.deepcopy(model), pixels))
    ours = list(losses(copy.deepcopy(model), lambda pair: cache.get(shas(pair))))
    swapped = list(losses(model, lambda pair: pixels(pair[::-1])))
    assert swapped != pytest.approx(expected, rel=LOSS_RTOL[dtype])  # the images count
    assert ours == pytest.approx(expected, rel=LOSS_RTOL[dtype])


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "header":
        path.write_bytes(b"\xff" * 64)
    else:
        metadata = {"fingerprint": "f" * 64 if how == "foreign" else path.parent.name, "images": "[]"}
        save_file({"features": torch.zeros(1, 1, 1)}, path, metadata)


@pytest.mark.parametrize("how", ["truncated", "emptied", "header", "foreign"])
def test_a_damaged_chunk_is_refused_by_name_and_computed_anew(how, open_cache, fill, images, small_chunks, caplog):
    cache = open_cache()
    fill(cache, images)
    tokens = cache.get(shas(images))["image_features"].clone()
    chunk = cache.folder / chunks(cache)[1]
    shutil.copy(chunk, cache.folder / "partial")
    chunk.unlink()  # the old inode stays mapped in `cache`
    (cache.folder / "partial").rename(chunk)
    damage(chunk, how)

    reopened = open_cache()
    with pytest.raises(FeaturesError, match=rf"{chunk.name} (is damaged|is of another encoder|holds torch.float32)"):
        reopened.get(shas(images))
    fill(reopened, images)
    assert chunk.name in caplog.text
    assert torch.equal(reopened.get(shas(images))["image_features"], tokens)
    assert not open_cache().damaged
    assert torch.equal(open_cache().get(shas(images))["image_features"], tokens)


def test_a_full_disk_is_known_before_anything_is_encoded(open_cache, fill, images, encoder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 6 * encoder.embed_dim * 2))
    counts = count_encoded(encoder)
    with pytest.raises(OSError, match=r"7 images need 1,344 bytes, 1,152 are free: ") as raised:
        fill(open_cache(), images)
    assert raised.value.errno == errno.ENOSPC
    assert not counts


def test_what_the_cache_holds_makes_no_room_for_what_is_missing(open_cache, fill, images, encoder, monkeypatch):
    fill(open_cache(), images[:4])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 2 * encoder.embed_dim * 2))
    with pytest.raises(OSError, match=r"3 images need 576 bytes, 384 are free: "):
        fill(open_cache(), images[4:])


def test_a_write_that_fails_leaves_no_part_of_a_chunk(open_cache, fill, images, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = open_cache()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device: .*chunk-\w+\.safetensors"):
        fill(cache, images)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("value", [70_000.0, float("nan")])
def test_features_that_float16_cannot_hold_are_an_error(value, open_cache, fill, images, encoder):
    encoder.register_forward_hook(lambda module, inputs, output: output.index_fill(2, torch.tensor([3]), value))
    with pytest.raises(FeaturesError, match=r"test_resnet gives (70000|nan) .* dtype=torch.float32"):
        fill(open_cache(), images)


def test_float32_holds_what_float16_cannot(open_cache, fill, images, encoder):
    encoder.register_forward_hook(lambda module, inputs, output: output * 0 + 70_000)
    cache = open_cache(dtype=torch.float32)
    fill(cache, images)
    assert cache.get(shas(images))["image_features"].eq(70_000).all()


def test_an_encoder_that_trains_is_refused(open_cache, fill, images, encoder):
    cache = open_cache()
    encoder.backbone.conv1.requires_grad_(True)
    with pytest.raises(ValueError, match="freeze it"):
        fill(cache, images)


def test_the_fingerprint_is_the_same_for_equal_encoders(encoder, transform):
    twin = VisionEncoder("test_resnet", image_size=32)
    twin.load_state_dict(encoder.state_dict())
    same = ImageTransform.from_dict(transform.to_dict())
    assert encoder_fingerprint(twin, same) == encoder_fingerprint(encoder, transform)


def test_the_fingerprint_knows_every_weight(encoder, transform):
    before = encoder_fingerprint(encoder, transform)
    encoder.backbone.layer3[0].bn1.running_var[2] += 1e-3
    assert encoder_fingerprint(encoder, transform) != before


def test_the_fingerprint_knows_the_preprocessing(encoder, transform):
    other = ImageTransform(encoder.data_config, background=(0, 0, 0))
    assert encoder_fingerprint(encoder, other) != encoder_fingerprint(encoder, transform)


def test_the_fingerprint_knows_the_blocks(transform):
    encoder = VisionEncoder("test_vit", blocks=(0, 5), image_size=32)
    other = VisionEncoder("test_vit", blocks=(1, 5), image_size=32)
    other.load_state_dict(encoder.state_dict())
    assert encoder_fingerprint(encoder, transform) != encoder_fingerprint(other, transform)
