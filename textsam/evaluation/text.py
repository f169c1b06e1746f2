"""Words on one image, and what many images of them add up to: union IoU, COCO AP, absence.

Dimension key: N instances, Q names, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from textsam.evaluation.metrics import (
    AveragePrecision,
    auroc,
    coco_average_precision,
    count_matches,
    intersection_and_union,
)
from textsam.evaluation.options import Promptable
from textsam.files.coco import CocoDataset, CocoImage
from textsam.files.rle import encode_mask
from textsam.language.vocabulary import UnknownNameError

LOW_THRESHOLD = 0.3
"""Confidence from which detections enter COCO AP, which ranks them itself. Union IoU uses the model's own threshold."""

CONFUSABLE = (
    ("cat", "dog"),
    ("bus", "train"),
    ("sofa", "chair"),
    ("couch", "chair"),
    ("cow", "sheep"),
    ("cow", "horse"),
    ("bicycle", "motorbike"),
    ("bicycle", "motorcycle"),
    ("car", "bus"),
    ("car", "truck"),
    ("airplane", "bird"),
    ("dining table", "chair"),
)
"""Names that are easily taken for each other; those that a data set has are scored against each other."""


@dataclass(frozen=True)
class SemanticTruth:
    """What an image holds, by name.

    Attributes:
        masks: name -> (H, W) bool union of its instances, without ignored pixels.
        ignore: name -> (H, W) bool, pixels that do not count for this name.
        hidden: names whose presence is not scored: there are only regions to ignore of them.
    """

    masks: dict[str, np.ndarray]
    ignore: dict[str, np.ndarray]
    hidden: frozenset[str]


@dataclass
class TextScores:
    """Results of one image, or the sum of many (`extend`).

    Attributes:
        names, intersections, unions: one entry for every (image, name) pair whose name is in the image.
        answers, matches, wanted: for every such pair that has instances, how many were found, how many of these have
            an IoU of at least 0.5 with one of their own, and how many there are.
        presence: one (name, score, is there) for every image and name asked.
        pairs: one (first, second, score of the one that is there, score of the one that is not) for confusable names.
        truths, detections: COCO entries with image ids counted up from 1.
        union_masks: name -> prediction (H, W) bool, of a single image, for pictures.
    """

    names: list[str] = field(default_factory=list)
    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    matches: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    presence: list[tuple[str, float, bool]] = field(default_factory=list)
    pairs: list[tuple[str, str, float, float]] = field(default_factory=list)
    truths: list[dict[str, Any]] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    union_masks: dict[str, np.ndarray] = field(default_factory=dict)

    def extend(self, other: TextScores) -> None:
        """Adds the results of another image or set, without its masks."""
        for key in vars(self).keys() - {"union_masks"}:
            getattr(self, key).extend(getattr(other, key))


def semantic_truth(image: CocoImage, dataset: CocoDataset) -> SemanticTruth:
    """Unions by name; categories of the same name are one."""
    masks: dict[str, np.ndarray] = {}
    ignore: dict[str, np.ndarray] = {}
    for region in image.instances:
        name = str(dataset.name_of(region))
        mask = region.mask()
        masks[name] = masks[name] | mask if name in masks else mask
    everywhere = image.ignore_mask()
    for region in image.ignore:
        name_or_all = dataset.name_of(region)
        if name_or_all is not None:
            ignore[name_or_all] = ignore.get(name_or_all, everywhere) | region.mask()
    ignore = {name: ignore.get(name, everywhere) for name in {*masks, *ignore}}
    masks = {name: mask & ~ignore[name] for name, mask in masks.items()}
    shown = {name: mask for name, mask in masks.items() if mask.any()}
    return SemanticTruth(shown, ignore, frozenset({*ignore} - {*shown}))


def known_names(model: Promptable, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names that the model's text side takes, names that it refuses); an image must be set."""
    known, unknown = list(dict.fromkeys(names)), []
    while known:
        try:
            model.presence(None, known)
        except UnknownNameError as error:
            if error.text not in known:
                raise
            known.remove(error.text)
            unknown.append(error.text)
        else:
            break
    return known, unknown


def score_text(
    model: Promptable, image: CocoImage, dataset: CocoDataset, truth: SemanticTruth, names: list[str], number: int
) -> TextScores:
    """Asks an image that was set for names.

    Args:
        truth: of this image; from another file than `dataset` where one holds semantic masks.
        names: all names of the data set that the model knows: those that are not there are the negatives.
        number: id of the image in `truths` and `detections`, unique in the set.
    """
    scores = TextScores()
    present = [name for name in names if name in truth.masks]
    if present:
        found = model.predict(text=present)
        for index, name in enumerate(present):
            union = union_of(found, index, (image.height, image.width))
            intersection, total = intersection_and_union(union[None], truth.masks[name][None], truth.ignore[name])
            scores.names.append(name)
            scores.intersections.append(int(intersection[0]))
            scores.unions.append(int(total[0]))
            scores.union_masks[name] = union
            # As RLE: hundreds of instances of a large picture would not fit into memory.
            targets = [region.rle for region in image.instances if dataset.name_of(region) == name]
            if targets:
                _count_instances(found, index, targets, truth.ignore[name], scores)
    if names:
        _score_instances(model, image, dataset, names, number, scores)
        presence = np.asarray(model.presence(None, names), float)
        if presence.shape != (len(names),):
            raise ValueError(f"expected {len(names)} values from presence, got shape {presence.shape}")
        _score_presence(dict(zip(names, presence.tolist(), strict=True)), truth, scores)
    return scores


def _count_instances(
    found: Any, index: int, targets: list[dict[str, Any]], ignore: np.ndarray, scores: TextScores
) -> None:
    """The answers to one name, without those that lie mostly where nothing is known, against its instances."""
    scores.wanted.append(len(targets))
    own = np.flatnonzero(np.asarray(found.class_id) == index) if len(found) else np.zeros(0, np.int64)
    own = own[np.argsort(-np.asarray(found.confidence)[own], kind="stable")] if len(own) else own
    every = np.asarray(found.mask, bool) if len(own) else np.zeros((0, *ignore.shape), bool)
    answers = (every[row] for row in own)
    masks = [encode_mask(mask) for mask in answers if 2 * (mask & ignore).sum() <= mask.sum()]
    scores.answers.append(len(masks))
    scores.matches.append(count_matches(masks, targets))


def union_of(detections: Any, index: int, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool union of the detections of one query."""
    if len(detections) == 0:
        return np.zeros(size_hw, bool)
    return np.asarray(detections.mask, bool)[np.asarray(detections.class_id) == index].any(axis=0)


def _score_presence(presence: dict[str, float], truth: SemanticTruth, scores: TextScores) -> None:
    for name, value in presence.items():
        if name not in truth.hidden:
            scores.presence.append((name, value, name in truth.masks))
    for first, second in CONFUSABLE:
        if first not in presence or second not in presence or {first, second} & truth.hidden:
            continue
        if (first in truth.masks) != (second in truth.masks):
            there, absent = (first, second) if first in truth.masks else (second, first)
            scores.pairs.append((first, second, presence[there], presence[absent]))


def _score_instances(
    model: Promptable, image: CocoImage, dataset: CocoDataset, names: list[str], number: int, scores: TextScores
) -> None:
    """Instances of all names, for COCO AP. Category ids are positions in `names`, counted from 1."""
    category_ids = {name: index + 1 for index, name in enumerate(names)}
    for regions, is_crowd in ((image.instances, 0), (image.ignore, 1)):
        for region in regions:
            category = category_ids.get(dataset.name_of(region) or "")
            if category is not None:
                truth = {"image_id": number, "category_id": category, "iscrowd": is_crowd}
                scores.truths.append(truth | {"segmentation": region.rle, "area": region.area})
    found = model.predict(text=names, threshold=LOW_THRESHOLD)
    masks, class_ids, confidences = np.asarray(found.mask), np.asarray(found.class_id), np.asarray(found.confidence)
    for row in range(len(found)):
        detection = {"image_id": number, "category_id": int(class_ids[row]) + 1, "score": float(confidences[row])}
        scores.detections.append(detection | {"segmentation": encode_mask(masks[row])})


def absence_auroc(scores: TextScores) -> dict[str, Any]:
    """How well presence tells the names that are in a photo from those that are not.

    Returns:
        auroc: over all (image, name) pairs; present, absent: their counts.
        auroc_confusable: over images with exactly one of two confusable names, the score of the one that is there
            against the score of the other; confusable: "a / b" -> (auroc, share of images where the right one scores
            higher, count of images).
        per_name: name -> (auroc between the photos with it and those without, count of photos with it).
    """
    positives = [score for _, score, there in scores.presence if there]
    negatives = [score for _, score, there in scores.presence if not there]
    by_pair: dict[str, list[tuple[float, float]]] = {}
    for first, second, there, absent in scores.pairs:
        by_pair.setdefault(f"{first} / {second}", []).append((there, absent))
    confusable = {
        pair: (auroc(*zip(*values, strict=True)), sum(a > b for a, b in values) / len(values), len(values))
        for pair, values in sorted(by_pair.items())
    }
    return {
        "auroc": auroc(positives, negatives),
        "present": len(positives),
        "absent": len(negatives),
        "auroc_confusable": auroc([p[2] for p in scores.pairs], [p[3] for p in scores.pairs]),
        "confusable": confusable,
        "per_name": _auroc_per_name(scores),
    }


def _auroc_per_name(scores: TextScores) -> dict[str, tuple[float, int]]:
    by_name: dict[str, tuple[list[float], list[float]]] = {}
    for name, score, there in scores.presence:
        by_name.setdefault(name, ([], []))[0 if there else 1].append(score)
    values = {name: (auroc(there, absent), len(there)) for name, (there, absent) in sorted(by_name.items())}
    return {name: (value, count) for name, (value, count) in values.items() if value is not None}


def average_precision(scores: TextScores, images: int, names: int) -> AveragePrecision:
    """COCO mask AP over images numbered 1 ... `images` and names numbered 1 ... `names`."""
    truths = [truth | {"id": index + 1} for index, truth in enumerate(scores.truths)]
    ground_truth = {
        "images": [{"id": i + 1} for i in range(images)],
        "annotations": truths,
        "categories": [{"id": i + 1} for i in range(names)],
    }
    return coco_average_precision(ground_truth, scores.detections)
