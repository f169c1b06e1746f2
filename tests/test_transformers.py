"""transformers' own factory, Auto classes and pipelines with TextSAM's model, processor and pipeline."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import convert_to_fp32, send_to_device
from hub_server import HubServer
from miniatures import CLIP_DIM
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import textsam
from textsam.checkpoints.encoders import EXTRA_NAMES, deferred_encoders, write_extra_names
from textsam.huggingface.processing import TextSamProcessor
from textsam.model import TextSamConfig, TextSamModel
from textsam.predictor import TextSam

TASK = "text-prompted-segmentation"


@pytest.fixture(scope="module")
def sam(tiny_folder: Path) -> TextSam:
    return textsam.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def segmenter(tiny_folder: Path):
    return pipeline(TASK, model=str(tiny_folder), device="cpu")


def photo(number: int = 0, size_hw: tuple[int, int] = (60, 80)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def assert_is(results: list[dict], expected) -> None:
    """The pipeline's list against the detections of `TextSam`."""
    assert len(results) == len(expected)
    for row, result in enumerate(results):
        assert set(result) == {"score", "label", "mask", "box"}
        assert result["score"] == pytest.approx(float(expected.confidence[row]), abs=1e-6)
        assert result["label"] == expected.data["class_name"][row]
        assert result["mask"].mode == "L"
        mask = np.asarray(result["mask"])
        np.testing.assert_array_equal(mask, 255 * expected.mask[row].astype(np.uint8))
        assert list(result["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        np.testing.assert_array_equal(list(result["box"].values()), expected.xyxy[row])


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "import textsam; assert 'transformers' not in sys.modules; "
            "textsam.TextSamConfig; from transformers import pipeline; "
            "print(type(pipeline('text-prompted-segmentation', device='cpu')).__name__)",
            "TextPromptedSegmentationPipeline",
        ),
        (
            "from transformers import AutoModel, AutoProcessor; import textsam; "
            "made = [auto.from_pretrained(sys.argv[1]) for auto in (AutoModel, AutoProcessor)]; "
            "print(*(type(each).__name__ for each in made))",
            "TextSamModel TextSamProcessor",
        ),
        (
            "import textsam, transformers; from concurrent.futures import ThreadPoolExecutor; "
            "pool = ThreadPoolExecutor(2); "
            "made = list(pool.map(lambda name: getattr(transformers, name), ['AutoModel', 'pipeline'])); "
            "print(made[0].__name__, type(made[0].from_pretrained(sys.argv[1])).__name__)",
            "AutoModel TextSamModel",
        ),
    ],
)
def test_transformers_knows_us_in_any_order_of_imports(statement: str, told: str, tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}", str(tiny_folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == told


def test_one_photo(segmenter, sam: TextSam, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    expected = sam.predict(photo(), text=["cat", "dog"], threshold=0.0)
    assert len(expected)
    for form in (photo(), Image.fromarray(photo()), str(tmp_path / "photo.png")):
        assert_is(segmenter(form, text=["cat", "dog"], threshold=0.0), expected)


def test_all_prompts(segmenter, sam: TextSam) -> None:
    clicks = {"points": [[[20, 30]], [[60, 20]]], "boxes": [[5, 5, 40, 50], [30, 4, 70, 30]]}
    assert_is(segmenter(photo(), **clicks), sam.predict(photo(), **clicks))
    assert_is(segmenter(photo(), text="cat", **clicks), sam.predict(photo(), text="cat", **clicks))
    options = {"negative_text": "dog", "max_instances": 1, "threshold": 0.0}
    assert_is(segmenter(photo(), text="cat", **options), sam.predict(photo(), text="cat", **options))
    multi = {"points": [[20, 30]], "multimask_output": True}
    assert_is(segmenter(photo(), **multi), sam.predict(photo(), **multi))


class Photos(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        if index >= len(self):
            raise IndexError
        return {"photo": Image.fromarray(photo(index, (60, 80 + 10 * index))), "name": index}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_generators_and_datasets(segmenter, sam: TextSam, batch_size: int) -> None:
    photos = [item["photo"] for item in Photos()]
    expected = [sam.predict(each, text=["cat", "dog"], threshold=0.0) for each in photos]
    options = {"text": ["cat", "dog"], "threshold": 0.0, "batch_size": batch_size}
    for inputs in (photos, (each for each in photos), KeyDataset(Photos(), "photo")):
        results = list(segmenter(inputs, **options))
        assert len(results) == 5
        for result, each in zip(results, expected, strict=True):
            assert_is(result, each)


def test_hugging_face_dataset(segmenter, sam: TextSam) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"image": [Image.fromarray(photo(i)) for i in range(3)]})
    data = data.cast_column("image", datasets.Image())
    assert len(segmenter(data, text="cat")) == 3
    for inputs in (KeyDataset(data, "image"), data, data.to_iterable_dataset()):
        results = list(segmenter(inputs, text="cat", threshold=0.0, batch_size=2))
        assert len(results) == 3
        for number, result in enumerate(results):
            assert_is(result, sam.predict(photo(number), text="cat", threshold=0.0))


def test_no_photos(segmenter) -> None:
    assert segmenter([], text="cat") == []


def test_photos_with_prompts_of_their_own(segmenter, sam: TextSam) -> None:
    asked = [
        {"image": photo(0), "text": ["dog", "cat"]},
        {"image": photo(1), "boxes": [5, 5, 40, 50]},
        {"image": photo(2)},
    ]
    results = segmenter(asked, text="cat", threshold=0.0, batch_size=3)
    assert_is(results[0], sam.predict(photo(0), text=["dog", "cat"], threshold=0.0))
    assert_is(results[1], sam.predict(photo(1), boxes=[5, 5, 40, 50]))
    assert_is(results[2], sam.predict(photo(2), text="cat", threshold=0.0))


def test_what_load_gives_is_a_model_too(sam: TextSam) -> None:
    assert_is(pipeline(TASK, model=sam)(photo(), text="cat", threshold=0.0), sam.predict(photo(), "cat", threshold=0.0))


@pytest.mark.parametrize("kind", ["folder", "loaded"])
def test_the_pipeline_saved_and_read_again(segmenter, sam: TextSam, kind: str, tmp_path: Path) -> None:
    saved = segmenter if kind == "folder" else pipeline(TASK, model=sam)
    saved.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "crop_encoder", "model.safetensors", "processor_config.json", "text_encoder",
    ]  # fmt: skip
    assert not hasattr(saved.model.config, "custom_pipelines")
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert_is(again(photo(), text="cat", threshold=0.0), sam.predict(photo(), text="cat", threshold=0.0))


def test_copies_and_pickles(sam: TextSam, segmenter, processor: TextSamProcessor) -> None:
    expected = sam.predict(photo(), text="cat", threshold=0.0)
    for copied in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        again = copied(sam).predict(photo(), text="cat", threshold=0.0)
        np.testing.assert_array_equal(again.mask, expected.mask)
        np.testing.assert_array_equal(again.confidence, expected.confidence)
        assert_is(copied(segmenter)(photo(), text="cat", threshold=0.0), expected)
        torch.testing.assert_close(copied(processor).embed(["cat"]), processor.embed(["cat"]))
    later = TextSam(sam.network, *deferred_encoders(sam.network.config, sam.device))  # a CLIP is fetched on first use
    for again in (copy.deepcopy(later), pickle.loads(pickle.dumps(later))):
        found = again.predict(photo(), points=[[20, 30]])
        np.testing.assert_array_equal(found.mask, sam.predict(photo(), points=[[20, 30]]).mask)


def test_the_processor_in_a_spawned_worker(processor: TextSamProcessor) -> None:
    photos = [photo(0), photo(1)]
    loader = DataLoader(
        photos, 2, collate_fn=partial(processor, text="cat"), num_workers=1, multiprocessing_context="spawn"
    )
    (inputs,), expected = loader, processor(photos, text="cat")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_the_model_of_transformers_stands_on_the_same_weights(tmp_path: Path) -> None:
    loaded = textsam.load()
    assert not isinstance(loaded.network, TextSamModel)
    assert isinstance(loaded.model, TextSamModel)
    assert loaded.model is loaded.model
    with torch.no_grad():
        loaded.network.similarity_bias += 1  # a parameter of the network itself
        loaded.network.mask_decoder.mask_tokens.weight += 1  # of a part
    loaded.model.save_pretrained(tmp_path)
    again = TextSamModel.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    own = loaded.network.state_dict()
    assert own.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in own.items())


def test_what_a_checkpoint_lacks_starts_as_in_a_new_model(tiny_folder: Path, model, processor) -> None:
    wider = AutoModel.from_pretrained(tiny_folder, dtype=torch.float32, dense_text=True, fine_masks=True).eval()
    own, stored = wider.state_dict(), model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in stored.items())
    assert (own["dense_text.scale"], own["dense_text.bias"]) == (3.0, -4.0)
    assert all(value.isfinite().all() for value in own.values())
    assert not any(parameter.any() for parameter in wider.fine_masks.out.parameters())  # nothing is added at the start
    assert own["fine_masks.features.pixels.weight"].std() > 0.01
    inputs = processor(images=photo(), input_points=[[20, 30]])
    with torch.inference_mode():
        torch.testing.assert_close(wider(**inputs).low_res_logits, model(**inputs).low_res_logits)


def test_from_the_hub(tiny_folder: Path, sam: TextSam, hub: HubServer, tmp_path: Path) -> None:
    repository = textsam.push_to_hub(sam, "somebody/small")
    assert "somebody/small" in repository
    found = pipeline(TASK, model="somebody/small", device="cpu")(photo(), text="cat", threshold=0.0)
    assert_is(found, sam.predict(photo(), text="cat", threshold=0.0))


def test_a_processor_from_the_hub_knows_the_names_that_the_model_adds(hub: HubServer, tmp_path: Path) -> None:
    TextSamConfig.tiny(text_trained=True).save_pretrained(tmp_path / "model")
    vectors = torch.nn.functional.normalize(torch.ones(1, 512), dim=-1)
    write_extra_names(tmp_path / "model" / EXTRA_NAMES, ["text line"], vectors, {})
    hub.add_folder("somebody/lines", tmp_path / "model")
    processor = TextSamProcessor.from_pretrained("somebody/lines")
    torch.testing.assert_close(processor.embed(["text line"]), vectors)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda make: make()(photo()), ValueError, "Expected a prompt, got none"),
        (lambda make: make()(photo(), text="cat", treshold=1), TypeError, "Expected text, .*, got treshold"),
        (lambda make: make()({"picture": photo()}, text="cat"), ValueError, 'dict of "image" and text.*got picture'),
        (lambda make: make()("nowhere.png", text="cat"), FileNotFoundError, "no file nowhere.png"),
        (lambda make: pipeline(TASK, model=torch.nn.Linear(1, 1)), TypeError, "a TextSAM model, got Linear"),
        (lambda make: pipeline(TASK, model=make().model), ValueError, "TextSamProcessor beside the model, got none"),
    ],
)
def test_what_cannot_be_meant(segmenter, call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(lambda: segmenter)


# -- the processor -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> TextSamProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def model(tiny_folder: Path):
    return AutoModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()


def check_masks(processor, model, sam: TextSam, prompts: dict, same: dict) -> None:
    """Processor, model and post-processing give the masks of `TextSam.predict`."""
    inputs = processor(images=photo(), return_tensors="pt", **prompts)
    with torch.inference_mode():
        outputs = model(**inputs, multimask_output=False)
    (masks,) = processor.post_process_masks(
        outputs.low_res_logits, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    expected = sam.predict(photo(), **same)
    np.testing.assert_array_equal(masks[:, 0], expected.mask)
    np.testing.assert_allclose(outputs.iou_predictions[:, 0], expected.data["predicted_iou"], atol=1e-6)


def test_processor_model_and_back_are_predict(processor, model, sam: TextSam) -> None:
    points, labels, boxes = (
        [[[20, 30], [9, 9]], [[60, 20], [8, 40]]],
        [[1, 0], [1, 1]],
        [[5, 5, 40, 50], [30, 4, 70, 30]],
    )
    mask = np.zeros((2, 60, 80), bool)
    mask[:, 10:40, 10:50] = True
    ours = {"points": points, "point_labels": labels, "boxes": boxes, "mask_input": mask}
    theirs = {"input_points": points, "input_labels": labels, "input_boxes": boxes, "input_masks": mask}
    check_masks(processor, model, sam, theirs, ours)
    check_masks(processor, model, sam, {**theirs, "text": ["cat", "dog"]}, {**ours, "text": ["cat", "dog"]})
    # As SAM's processors are called: one axis more, for the photo.
    sams = {"input_points": [points], "input_labels": [labels], "input_boxes": [boxes]}
    check_masks(processor, model, sam, sams, {key: ours[key] for key in ("points", "point_labels", "boxes")})
    check_masks(processor, model, sam, {"input_boxes": [boxes[:1]]}, {"boxes": boxes[0]})


def test_several_photos(processor, model) -> None:
    """In one call as one by one, also where the photos have different numbers of prompts."""
    photos = [photo(0), photo(1, (70, 50))]
    boxes = [[[5, 5, 40, 50], [30, 4, 70, 30]], [[4, 5, 30, 60]]]
    texts = [["cat"], ["dog"]]
    inputs = processor(images=photos, text=texts, input_boxes=boxes)
    assert inputs["image_index"].tolist() == [0, 0, 1]
    assert inputs["text_embeddings"].shape == (3, CLIP_DIM)
    with torch.inference_mode():
        outputs = model(**inputs, multimask_output=False)
        sizes = {name: inputs[name] for name in ("original_sizes", "image_index")}
        together = processor.post_process_masks(outputs.low_res_logits, **sizes, binarize=False)
        for number in range(2):
            alone = processor(images=photos[number], text=texts[number], input_boxes=boxes[number])
            logits = model(**alone, multimask_output=False).low_res_logits
            (expected,) = processor.post_process_masks(logits, alone["original_sizes"], binarize=False)
            torch.testing.assert_close(together[number], expected, rtol=1e-4, atol=1e-3)
    assert [tuple(masks.shape) for masks in together] == [(2, 1, 60, 80), (1, 1, 70, 50)]
    with pytest.raises(ValueError, match="Expected image_index for 3 masks of 2 images"):
        processor.post_process_masks(outputs.low_res_logits, inputs["original_sizes"])


def test_fewer_points_are_filled_up(processor) -> None:
    inputs = processor(images=[photo(0), photo(1)], input_points=[[[3, 4], [5, 6]], [[7, 8]]])
    assert inputs["point_labels"].tolist() == [[1, 1], [1, -1]]
    assert inputs["point_coords"].shape == (2, 2, 2)


def test_instance_segmentation(processor, model) -> None:
    boxes = [[5, 5, 70, 55], [30, 4, 70, 30]]
    inputs = processor(images=photo(), input_boxes=boxes, text="cat")
    with torch.inference_mode():
        outputs = model(**inputs)
    sizes = inputs["original_sizes"]
    (every,) = processor.post_process_instance_segmentation(outputs, sizes, threshold=0.0)
    assert [segment["label_id"] for segment in every["segments_info"]] == [0, 1]
    assert every["segmentation"].shape == (60, 80)
    assert set(every["segmentation"].unique().tolist()) <= {-1, 0, 1}
    (maps,) = processor.post_process_instance_segmentation(outputs, sizes, threshold=0.0, return_binary_maps=True)
    best = max(every["segments_info"], key=lambda segment: segment["score"])["id"]
    assert maps["segmentation"][best].any()
    torch.testing.assert_close((every["segmentation"] == best).int(), maps["segmentation"][best])
    scores = [segment["score"] for segment in every["segments_info"]]
    (one,) = processor.post_process_instance_segmentation(outputs, sizes, threshold=max(scores) - 1e-5)
    assert len(one["segments_info"]) == sum(score >= max(scores) - 1e-5 for score in scores)
    (none,) = processor.post_process_instance_segmentation(outputs, sizes, threshold=1.0)
    assert (none["segmentation"] == -1).all()
    assert none["segments_info"] == []


def test_saved_and_read_again(processor: TextSamProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, TextSamProcessor)
    assert again.to_dict() == processor.to_dict()
    asked = {"images": photo(), "text": ["cat"], "input_points": [[20, 30]]}
    first, second = processor(**asked), again(**asked)
    assert set(first) == set(second)
    for name in first:
        # The encoder of words is stored in float16.
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-3)
    sizes = AutoImageProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(sizes(photo())["pixel_values"], first["pixel_values"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"images": None}, "Expected images, got none"),
        ({"images": []}, "at least one image"),
        ({"images": photo(), "return_tensors": "np"}, "return_tensors=\"pt\", got 'np'"),
        ({"images": photo(), "input_points": [[900, 3]]}, "points inside the image"),
        ({"images": photo(), "input_boxes": [[1, 2, 30, 40]], "text": ["cat", "dog"]}, "each of its 1 prompts, got 2"),
        (
            {"images": [photo(), photo()], "input_boxes": [[1, 2, 30, 40], None]},
            "same kinds of prompts.*boxes and none",
        ),
        (
            {"images": [photo(), photo()], "input_points": [[[3, 4]]]},
            "points with one entry for each of 2 images, got 1",
        ),
    ],
)
def test_what_the_processor_cannot_mean(processor, asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**asked)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("points", "input_points"),
        ("point_labels", "input_labels"),
        ("boxes", "input_boxes"),
        ("mask_input", "input_masks"),
        ("input_box", "input_boxes"),
        ("texts", "text"),
    ],
)
def test_prompts_under_another_name_are_not_lost(processor, wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=rf"Expected {right}=\.\.\. of TextSamProcessor, got {wrong}\."):
        processor(images=photo(), **{wrong: [1, 2, 3, 4]})
    with pytest.raises(TypeError, match=rf"Expected {right}="):
        processor.image_processor(photo(), **{wrong: [1, 2, 3, 4]})
    with pytest.raises(TypeError, match="Expected text="):
        processor.image_processor(photo(), text="cat")
    assert "pixel_values" in processor(images=photo(), padding=True, images_kwargs={})  # of transformers


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither processor_config\.json nor config\.json"):
        TextSamProcessor.from_pretrained(tmp_path)


def test_outputs_by_name_and_place(processor, model) -> None:
    """As those of transformers' models, which tools take apart and put together again."""
    inputs = processor(images=photo(), input_boxes=[[5, 5, 70, 55]], text="cat")
    with torch.inference_mode():
        named = model(**inputs)
        plain = model(**processor(images=photo(), input_boxes=[[5, 5, 70, 55]]))
    assert list(named.keys()) == ["low_res_logits", "iou_predictions", "presence_logits"]
    assert named[0] is named["low_res_logits"] is named.low_res_logits
    assert len(plain.to_tuple()) == 2  # no word, no presence
    lower = type(plain)(**{name: value.half() for name, value in plain.items()})
    widened = send_to_device(convert_to_fp32(lower), "cpu")
    assert type(widened) is type(plain)
    assert widened.low_res_logits.dtype == torch.float32
    assert "text_embeddings" in inspect.signature(model.forward).parameters
