"""The cache on disk: the same results without the encoder, bounded, shared, and proof against damage."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import CLIP_DIM, HashedWords, mobile_miniature
from tiny_models import tiny_model, truncate

import textsam
from textsam.files.embedding_cache import EmbeddingCache, content_key, module_revision
from textsam.predictor import TextSam


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def forbid_encoding(sam: TextSam) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the image encoder ran")

    sam.network.encode_image = fail


@pytest.mark.parametrize("make", [mobile_miniature, lambda: tiny_model(clip_dim=CLIP_DIM)])
def test_a_second_pass_only_decodes_and_gives_the_same(make, tmp_path: Path) -> None:
    images = [photo(0), photo(1)]
    first = TextSam(make(), HashedWords())
    first.use_cache(tmp_path)
    before = first.predict_batch(images, boxes=[[5, 5, 50, 40]] * 2, return_logits=True)
    second = TextSam(make(), HashedWords())
    cache = second.use_cache(tmp_path)
    forbid_encoding(second)
    after = second.predict_batch(images, boxes=[[5, 5, 50, 40]] * 2, return_logits=True)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.data["low_res_logits"], other.data["low_res_logits"])
        np.testing.assert_array_equal(one.mask, other.mask)
    assert (cache.hits, cache.misses) == (2, 0)


def test_other_words_on_the_same_photo_find_what_they_find_without_a_cache(tiny_folder: Path, tmp_path: Path) -> None:
    textsam_with = textsam.load(tiny_folder, device="cpu")
    textsam_with.use_cache(tmp_path)
    textsam_with.predict(photo(), text="cat", threshold=0.0)
    forbid_encoding(textsam_with)
    found = textsam_with.predict(photo(), text="dog", threshold=0.0)
    expected = textsam.load(tiny_folder, device="cpu").predict(photo(), text="dog", threshold=0.0)
    assert len(found) > 0
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)  # memory layouts differ


def test_texts_are_kept(tiny_folder: Path, tmp_path: Path) -> None:
    first = textsam.load(tiny_folder, device="cpu")
    first.use_cache(tmp_path)
    first.presence(photo(), ["cat", "dog"])
    second = textsam.load(tiny_folder, device="cpu")
    second.use_cache(tmp_path)
    second.text_encoder.forward = None  # calling it would be a TypeError
    np.testing.assert_array_equal(second.presence(photo(), ["dog", "cat"]), first.presence(photo(), ["dog", "cat"]))
    with pytest.raises(ValueError, match="does not know 'unicorn'"):
        second.presence(photo(), ["unicorn"])


@pytest.mark.parametrize("change", ["weights", "side", "padding", "pixels"])
def test_whatever_changes_the_result_changes_the_key(change: str, tmp_path: Path) -> None:
    TextSam(mobile_miniature()).use_cache(tmp_path)
    sam = TextSam(mobile_miniature())
    sam.use_cache(tmp_path)
    sam.set_image(photo())
    other = TextSam(
        mobile_miniature(seed=int(change == "weights")),
        image_size=160 if change == "side" else None,
        pad_to_square=change != "padding",
    )
    cache = other.use_cache(tmp_path)
    other.set_image(photo(int(change == "pixels")))
    assert (cache.hits, cache.misses) == (0, 1)


def test_revision_sees_one_bit() -> None:
    layer = torch.nn.Linear(2, 2)
    before = module_revision(layer)
    assert module_revision(layer) == before
    with torch.no_grad():
        layer.weight[0, 0] += 1e-7
    assert module_revision(layer) != before


def tensor(kilobytes: int) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(kilobytes * 256)}


def key(number: int) -> str:
    return content_key("", str(number))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=100_000)
    for number in range(9):
        cache.put(key(number), tensor(10))
    assert cache.get(key(0)) is not None  # used again: now 1 is the oldest
    cache.put(key(9), tensor(10))
    assert cache.get(key(0)) is not None
    assert cache.get(key(1)) is None
    assert cache.get(key(9)) is not None
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 100_000


def test_what_does_not_fit_at_all_is_not_kept(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=1000)
    cache.put(key(0), tensor(10))
    assert cache.get(key(0)) is None
    with pytest.raises(ValueError, match="above 0, got 0"):
        EmbeddingCache(tmp_path, max_bytes=0)


def test_a_damaged_file_is_a_miss_and_goes(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put(key(0), tensor(10))
    (path,) = tmp_path.rglob("*.safetensors")
    truncate(path)
    assert cache.get(key(0)) is None
    assert not path.exists()


def test_a_damaged_file_that_cannot_go_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put(key(0), tensor(10))
    truncate(next(tmp_path.rglob("*.safetensors")))

    def refuse(path: Path, **options: bool) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get(key(0)) is None


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    cache = EmbeddingCache(tmp_path)
    monkeypatch.setattr("textsam.files.embedding_cache.write_atomically", fail)
    cache.put(key(0), tensor(1))
    cache.put(key(1), tensor(1))
    assert cache.get(key(0)) is None
    assert caplog.text.count("disk full") == 1


def write_many(folder: Path, start: int) -> None:
    cache = EmbeddingCache(folder, max_bytes=200_000)
    for number in range(start, start + 60):
        cache.put(key(number), {"x": torch.full((2560,), float(number))})
        for seen in range(0, number, 7):
            found = cache.get(key(seen))
            assert found is None or bool((found["x"] == seen).all())


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
    workers = [context.Process(target=write_many, args=(tmp_path, start)) for start in (0, 30)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0, 0]
    files = list(tmp_path.rglob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 200_000 * (1 + 2 / 64) + 2 * 11_000
    assert not [path for path in files if path.name.startswith(".")]
