"""Every reader gives the same samples; bad data are counted and skipped; samples repeat and can be continued."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from scenes import HEIGHT, NAMES, WIDTH, coded, sa1b_pair, scene, write_coco, write_shard

from textsam.files.rle import decode_mask
from textsam.language.vocabulary import Vocabulary
from train.crop_encoder import list_crops
from train.readers import Columns, RecordSource, from_hugging_face, open_source
from train.records import Account, Record
from train.samples import RecordSamples, SampleOptions, StreamSamples, make_sample

OPTIONS = SampleOptions(size=64, scale_range=(0.1, 2.0), mirror_share=0.5, crop_size=16, min_side_px=0)


def records(source: RecordSource) -> dict[str, Record]:
    found = [source.convert(row) for row in source.rows]
    return {record.id.removeprefix("sa_"): record for record in found}


def coco(folder: Path) -> RecordSource:
    return open_source(str(write_coco(folder / "coco")))


def sa1b_folder(folder: Path) -> RecordSource:
    (folder / "sa").mkdir()
    for number in range(6):
        jpg, text = sa1b_pair(number)
        (folder / "sa" / f"sa_{number}.jpg").write_bytes(jpg)
        (folder / "sa" / f"sa_{number}.json").write_bytes(text)
    return open_source(str(folder / "sa"))


def sa1b_shards(folder: Path) -> RecordSource:
    (folder / "shards").mkdir()
    for shard in range(2):
        write_shard(folder / "shards" / f"sa_{shard}.tar", range(3 * shard, 3 * shard + 3))
    return open_source(str(folder / "shards"))


def mask_folder(folder: Path) -> RecordSource:
    for number in range(6):
        picture, masks = scene(number)
        (folder / "m" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "m" / "images" / f"{number}.png")
        if number % 2:  # a picture for each mask, or one of numbers
            (folder / "m" / "masks" / str(number)).mkdir(parents=True)
            for name, mask in zip(NAMES, masks, strict=True):
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "m" / "masks" / f"{number}/{name}_1.png")
        else:
            (folder / "m" / "masks").mkdir(exist_ok=True)
            numbers = masks[0] * np.uint8(1) + masks[1] * np.uint8(2)
            Image.fromarray(numbers).save(folder / "m" / "masks" / f"{number}.png")
    return open_source(str(folder / "m"))


def hugging_face(folder: Path) -> RecordSource:
    rows = []
    for number in range(6):
        picture, masks = scene(number)
        Image.fromarray(picture).save(folder / f"{number}.png")
        row = {"photo": str(folder / f"{number}.png"), "key": str(number), "what": list(NAMES)}
        rows.append({**row, "objects": [coded(mask) for mask in masks]})
    return from_hugging_face(Dataset.from_list(rows), Columns("photo", "objects", "what", "key"), name="hub")


@pytest.mark.parametrize("open_it", [coco, sa1b_folder, sa1b_shards, mask_folder, hugging_face])
def test_every_reader_gives_the_same_pictures_and_masks(tmp_path: Path, open_it) -> None:
    source = open_it(tmp_path)
    found = records(source)
    assert sorted(found) == [str(number) for number in range(6)]
    for number in range(6):
        picture, masks = scene(number)
        record = found[str(number)]
        np.testing.assert_array_equal(record.read(), picture)
        read = [region.mask() for region in record.regions]
        assert sorted(mask.tobytes() for mask in read) == sorted(mask.tobytes() for mask in masks)
        if record.names[0] is not None:
            named = {name: mask.tobytes() for name, mask in zip(record.names, read, strict=True)}
            assert named == {name: mask.tobytes() for name, mask in zip(NAMES, masks, strict=True)}
    sample = make_sample(found["0"], 0, SampleOptions(size=64))
    assert sample.valid_hw == (HEIGHT, WIDTH)
    assert len(sample.masks) == 2
    assert sample.crops is None


def test_samples_repeat_and_mask_and_crop_agree(tmp_path: Path) -> None:
    source = coco(tmp_path)
    first, again = RecordSamples([source], OPTIONS), RecordSamples([source], OPTIONS)
    seen = set()
    for position in range(12):
        one, other = first[position], again[position]
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.masks, other.masks)
        assert one.seed == other.seed
        seen.add(one.picture_key)
        red = (one.pixels[0] > 200) & (one.pixels[2] < 80)
        for label, mask, crop, inside in zip(one.labels, one.masks, one.crops, one.coverage, strict=True):
            if label == "square" and mask.sum() > 8:  # the picture shows red where the mask is
                assert red.reshape(16, 4, 16, 4).float().mean((1, 3))[mask > 0.9].mean() > 0.9
                assert crop[inside > 0.9].float().mean(0)[0] > 200
        x, y = one.clicks.long().T
        assert (one.masks[torch.arange(len(x)), y // 4, x // 4] > 0).all()
    assert len(seen) == 6  # every picture once an epoch
    assert not torch.equal(first[0].pixels, RecordSamples([source], SampleOptions(size=64, seed=1))[0].pixels)


def test_small_and_large_masks_are_dropped_and_their_number_is_capped() -> None:
    masks = np.zeros((4, HEIGHT, WIDTH), bool)
    masks[0, :2, :2], masks[1, :20, :20], masks[2], masks[3, 5:30, 5:30] = True, True, True, True
    picture = Path(__file__)
    regions = [{"segmentation": coded(mask), "id": i} for i, mask in enumerate(masks)]
    from train.records import make_record

    record = make_record(Account("x"), "x", 1, picture, (HEIGHT, WIDTH), regions)
    object.__setattr__(record, "picture", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    kept = {key[1] for key in make_sample(record, 0, SampleOptions(size=64, min_side_px=100)).keys}
    assert kept == {"1", "3"}  # 2 x 2 px is below (100 / 16)^2, the third covers all of the picture
    assert len(make_sample(record, 0, SampleOptions(size=64, instances=1)).masks) == 1


def test_fixed_views_and_crops(tmp_path: Path) -> None:
    options = SampleOptions(size=64, scale_range=(0.5, 2.0), mirror_share=0.5, views=2, crop_size=16, crop_seeds=2)
    samples = RecordSamples([coco(tmp_path)], options)
    views, crops = {}, {}
    for position in range(36):
        sample = samples[position]
        views.setdefault((sample.picture_key, sample.view_key), []).append(sample.pixels)
        for key, crop in zip(sample.keys, sample.crops, strict=True):
            crops.setdefault((sample.picture_key, key), []).append(crop)
    assert len(views) <= 12
    assert len(crops) <= 24
    for group in (*views.values(), *crops.values()):
        assert all(torch.equal(group[0], other) for other in group)


def test_keys_of_what_is_kept_are_those_of_the_pixels(tmp_path: Path) -> None:
    """Two exports of one tool have the same folder and file, and a cache may see another seed."""
    sources = []
    for project in ("cats", "dogs"):
        write_coco(tmp_path / project / "train", first=6 * len(sources))
        sources.append(open_source(str(tmp_path / project / "train")))
    assert sources[0].name == sources[1].name
    seen: dict[str, torch.Tensor] = {}
    for seed in (0, 1):
        options = SampleOptions(size=64, scale_range=(0.5, 2.0), views=2, crop_size=16, crop_seeds=2, seed=seed)
        samples = RecordSamples(sources, options)
        for position in range(24):
            sample = samples[position]
            crops = {key: crop for (_, key), crop in zip(sample.keys, sample.crops, strict=True)}
            for key, pixels in {sample.view_key: sample.pixels, **crops}.items():
                assert torch.equal(seen.setdefault(key, pixels), pixels)
    assert len(seen) > 60


def test_a_stream_without_ids_names_its_pictures_by_content() -> None:
    rows = []
    for number in range(3):
        picture, masks = scene(number)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({"image": buffer.getvalue(), "masks": [coded(mask) for mask in masks]})
    source = from_hugging_face(Dataset.from_list(rows).to_iterable_dataset(), Columns(), name="stream")
    ids = [source.convert(row).id for row in source.rows]
    assert len(set(ids)) == 3
    assert [source.convert(row).id for row in source.rows.skip(1)] == ids[1:]


def test_a_null_is_skipped_as_any_bad_entry() -> None:
    picture, masks = scene(0)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    good = {"image": buffer.getvalue(), "masks": [coded(mask) for mask in masks], "names": list(NAMES)}
    rows = Dataset.from_list([good, *({**good, column: None} for column in good)])
    source = from_hugging_face(rows, Columns(names="names"), name="nulls", max_bad_share=1)
    assert len(RecordSamples([source], SampleOptions(size=64))[0].masks) == 2
    assert all(RecordSamples([source], SampleOptions(size=64))[i].keys for i in range(4))
    assert source.account.bad["image"] >= 3


def test_folders_that_tools_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_coco(tmp_path / "roboflow")
    for picture in (file.parent / "images").iterdir():
        picture.rename(file.parent / picture.name)
    (file.parent / "images").rmdir()
    file.rename(file.with_name("_annotations.coco.json"))
    assert len(open_source(str(tmp_path / "roboflow")).rows) == 6

    rows = Dataset.from_list([{"image": "x.png", "masks": []}])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    assert len(open_source(str(tmp_path / "saved")).rows) == 1

    file = write_coco(tmp_path / "cvat" / "annotations")
    (file.parent / "images").rename(tmp_path / "cvat" / "images")
    file = file.rename(file.with_name("instances_default.json"))
    with pytest.raises(ValueError, match=r"If one of annotations/instances_default\.json is a COCO file"):
        open_source(str(tmp_path / "cvat"))
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    assert len(open_source(str(file)).rows) == 6
    assert "skipped (1 in all): instances_default.json: annotation" in caplog.text


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_goes_on_where_it_stopped(tmp_path: Path, world: int) -> None:
    source = sa1b_shards(tmp_path)
    seen = []
    for rank in range(world):
        stream = StreamSamples(source, OPTIONS)
        whole = list(itertools.islice(stream.at(0, rank, world), 8))
        rest = list(itertools.islice(stream.at(5, rank, world), 3))
        for one, other in zip(whole[5:], rest, strict=True):
            assert one.picture_key == other.picture_key
            assert torch.equal(one.pixels, other.pixels)
        seen.append({sample.picture_key for sample in whole[: 6 // world]})
    assert sum(len(keys) for keys in seen) == len(set().union(*seen)) == 6


def test_bad_data_are_counted_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jpg, text = sa1b_pair(7)
    content = json.loads(text)
    content["annotations"][0]["segmentation"] = coded(np.ones((4, 4), bool))
    content["annotations"].append({"id": 99, "segmentation": [[]]})
    bad = {"sa_7_jpg": jpg, "sa_7_json": json.dumps(content).encode(), "sa_8_json": text, "sa_9_jpg": b"no picture"}
    shard = write_shard(tmp_path / "sa.tar", range(6), **bad, sa_9_json=text)
    source = open_source(str(shard), max_bad_share=0.5)
    samples = list(itertools.islice(StreamSamples(source, SampleOptions(size=64)), 9))
    assert source.account.bad == {"image": 2, "mask": 2}
    assert sum(not sample.keys for sample in samples) == 2  # the bad ones leave an empty place
    told = caplog.text
    for words in ("sa_7/71: its mask is [4, 4]", "sa_7/99: polygon 0", "sa_8: its .jpg is missing", "sa_9", "sa.tar"):
        assert words in told
    strict = open_source(str(shard), max_bad_share=0.05)
    with pytest.raises(ValueError, match=r"sa\.tar: \d of \d+ \w+s are bad \(at most 5% allowed\)"):
        list(itertools.islice(StreamSamples(strict, SampleOptions(size=64)), 20))


def test_a_missing_picture_gives_way_to_the_next(tmp_path: Path) -> None:
    source = coco(tmp_path)
    (tmp_path / "coco" / "images" / "3.png").unlink()
    samples = RecordSamples([source], SampleOptions(size=64))
    assert all("3" not in samples[position].picture_key.rpartition("/")[2] for position in range(6))
    assert source.account.bad["image"] == 1


def test_colours_number_instances_as_grey_values_do(tmp_path: Path) -> None:
    picture, masks = scene(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "0.png")
    colours = masks[0][..., None] * np.uint8((0, 255, 0)) + masks[1][..., None] * np.uint8((0, 0, 9))
    Image.fromarray(colours).save(tmp_path / "masks" / "0.png")
    record = records(open_source(str(tmp_path)))["0"]
    assert sorted(r.mask().tobytes() for r in record.regions) == sorted(mask.tobytes() for mask in masks)
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "masks" / "0.png")  # opaque everywhere
    assert len(records(open_source(str(tmp_path)))["0"].regions) == 2


def test_colours_of_a_photo_are_no_masks(tmp_path: Path) -> None:
    """As smooth edges and JPEG make them: a mask for each would fill the memory."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / folder / "0.png")
    source = open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"its masks have \d+ colours, at most 1000 are read"):
        source.convert(source.rows[0])


def test_crops_of_any_coco_file(tmp_path: Path) -> None:
    """Polygons and annotations without `iscrowd`, as many tools write them."""
    file = write_coco(tmp_path / "coco")
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = [[5, 5, 20, 5, 20, 15, 5, 15]]
        del entry["iscrowd"]
    file.write_text(json.dumps(content))
    [crops] = list_crops(tmp_path, "train", Vocabulary(list(NAMES)), random.Random(0)).values()
    assert sorted(name for _, _, name in crops) == sorted(NAMES * 6)
    assert {decode_mask(rle).sum() for _, rle, _ in crops} == {150}


def test_what_is_no_data_set_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"rows\.jsonl is no data set: expected"):
        open_source(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="no data set"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="is no data set: expected"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="columns must be image="):
        Columns.parse("pictures=x")
    with pytest.raises(ValueError, match="has no column masks, only photo"):
        from_hugging_face(
            Dataset.from_list([{"photo": "x", "image": "y"}]).select_columns(["photo", "image"]), Columns(), name="x"
        )


def test_crowds_are_ignored(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "c")
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    record = records(open_source(str(file)))["0"]
    assert len(record.regions) == 1
    np.testing.assert_array_equal(record.ignore_mask(), scene(0)[1][0])
    assert make_sample(record, 0, SampleOptions(size=64)).weights.min() == 0
    assert decode_mask(record.regions[0].rle).shape == (HEIGHT, WIDTH)
