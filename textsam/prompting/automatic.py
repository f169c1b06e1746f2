"""Automatic masks: everything in a photo, from a grid of points, on the photo and on crops of it.

Source: Kirillov et al. 2023, *Segment Anything*, appendix B; the order of the steps, the comparisons and the defaults
are those of the released code, and so are the masks, which only a model with `mask_detail` draws again in the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textsam.files.rle import decode_mask, encode_mask
from textsam.modeling.structures import ImageEmbeddings
from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.automatic_options import AutomaticOptions, crop_boxes
from textsam.prompting.detections import boxes_of_masks, to_numpy
from textsam.prompting.encoded_image import EncodedImage, encode_images
from textsam.prompting.mask_details import CROPS_AT_A_TIME, Asked, masks_of_photo
from textsam.prompting.mask_scoring import Place, ScoredMask, score_masks
from textsam.prompting.transforms import ImageGeometry

# A mask this near (px) to an edge of its crop that is no edge of the photo is taken to be cut off there.
_CROP_EDGE_PX = 20.0


@dataclass(frozen=True)
class AutomaticMasks:
    """N masks of one photo, best first.

    Attributes:
        size_hw: of the photo.
        rles: N compressed COCO RLEs.
        boxes_xyxy: (N, 4) int64; x2 and y2 are the last column and row inside the mask.
        predicted_iou: (N,) float32, not clipped. stability_score: (N,) float32.
        points_xy: (N, 2) float64, the point that asked for the mask, in px of the photo.
        crop_boxes_xyxy: (N, 4) int64, the crop that the mask was found in.
    """

    size_hw: tuple[int, int]
    rles: list[dict[str, Any]]
    boxes_xyxy: np.ndarray
    predicted_iou: np.ndarray
    stability_score: np.ndarray
    points_xy: np.ndarray
    crop_boxes_xyxy: np.ndarray

    def __len__(self) -> int:
        return len(self.rles)

    def masks(self) -> np.ndarray:
        """(N, H, W) bool."""
        masks = np.zeros((len(self), *self.size_hw), dtype=bool)
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[:] = decode_mask(rle)
        return masks

    def __getitem__(self, keep: np.ndarray) -> AutomaticMasks:
        """Those with these indices, in this order."""
        rows = {name: getattr(self, name)[keep] for name in _ARRAYS}
        return replace(self, rles=[self.rles[i] for i in keep], **rows)


_ARRAYS = ("boxes_xyxy", "predicted_iou", "stability_score", "points_xy", "crop_boxes_xyxy")


@torch.no_grad()
def generate(
    model: TextSamNetwork,
    image: np.ndarray,
    options: AutomaticOptions | None = None,
    *,
    embeddings: ImageEmbeddings | None = None,
    side: int | None = None,
    pad_to_square: bool = True,
) -> AutomaticMasks:
    """All masks that a grid of points finds in a photo.

    Args:
        image: (H, W, 3) uint8 RGB.
        options: None: the defaults.
        embeddings: of the whole photo (B = 1), encoded with this `side` and `pad_to_square`; None: encoded here.
        side: input side in px, of the photo and of each crop; None: the model's own.
        pad_to_square: see `ImageGeometry.of`.
    Returns:
        `AutomaticMasks` in order of predicted IoU, those of small crops first.
    """
    options = options or AutomaticOptions()
    size_hw = (image.shape[0], image.shape[1])
    boxes, layers = crop_boxes(size_hw, options.crop_n_layers, options.crop_overlap_ratio)
    side = model.config.image_size if side is None else side
    found = []
    for box, layer in zip(boxes, layers, strict=True):
        x1, y1, x2, y2 = box
        if layer == 0 and embeddings is not None:
            geometry = ImageGeometry.of(size_hw, side, model.config.patch_size, pad_to_square)
            crop = EncodedImage(image, geometry, embeddings)
        else:
            (crop,) = encode_images(model, [image[y1:y2, x1:x2]], side, pad_to_square)
        found.append(_search_crop(model, crop, options, layer, box, size_hw))
    masks = _join(found)
    if len(boxes) > 1:
        areas = np.prod(masks.crop_boxes_xyxy[:, 2:] - masks.crop_boxes_xyxy[:, :2], axis=1)
        masks = masks[box_nms(masks.boxes_xyxy, 1 / torch.from_numpy(areas), options.crop_nms_thresh)]
    if options.min_mask_region_area > 0:
        nms_thresh = max(options.box_nms_thresh, options.crop_nms_thresh)
        masks = clean_masks(masks, options.min_mask_region_area, nms_thresh)
    return masks


def _search_crop(
    model: TextSamNetwork,
    crop: EncodedImage,
    options: AutomaticOptions,
    layer: int,
    crop_box: tuple[int, int, int, int],
    size_hw: tuple[int, int],
) -> AutomaticMasks:
    """The masks of one crop, in the frame of the photo."""
    height, width = crop.geometry.original_size_hw
    points = options.grid(layer) * np.array([width, height])
    left, top = crop_box[:2]
    place = Place(size_hw, left, top)
    redraw = model.config.mask_detail and options.redraw
    scored: list[ScoredMask] = []
    ious, asked, drawn = [], [], []
    for start in range(0, len(points), options.points_per_batch):
        batch = points[start : start + options.points_per_batch]
        logits, iou = _decode_points(model, crop, batch)
        sources = np.repeat(batch, logits.shape[0] // len(batch), axis=0)
        if options.pred_iou_thresh > 0.0:  # the cheapest test comes first: what fails it is never upscaled
            certain = iou > options.pred_iou_thresh
            logits, iou, sources = logits[certain], iou[certain], sources[to_numpy(certain)]
        values = iou.tolist()  # once: one by one each would wait for the GPU
        least, offset = options.stability_score_thresh, options.stability_score_offset
        for mask in score_masks(logits, crop.geometry, least, offset, place=place):
            if not _is_cut_off(mask.box_xyxy, crop_box, size_hw):
                scored.append(mask)
                ious.append(values[mask.index])
                asked.append(sources[mask.index])
                if redraw:
                    drawn.append(logits[mask.index].float().clone())  # not a view, which would keep the whole batch

    predicted = np.array(ious, dtype=np.float32)
    boxes = np.array([mask.box_xyxy for mask in scored], dtype=np.int64).reshape(-1, 4)
    keep = box_nms(boxes, torch.from_numpy(predicted), options.box_nms_thresh)
    points = np.array([asked[i] for i in keep], dtype=np.float64).reshape(-1, 2)
    if drawn:
        rles, kept = _redrawn(model, crop, torch.stack([drawn[i] for i in keep]), points, place)
    else:
        rles, kept = [scored[i].rle() for i in keep], boxes[keep] + np.array([left, top, left, top])
    masks = AutomaticMasks(
        size_hw,
        rles,
        kept,
        predicted[keep],
        np.array([scored[i].stability for i in keep], dtype=np.float32),
        points + np.array([left, top]),
        np.tile(np.array(crop_box, dtype=np.int64), (len(keep), 1)),
    )
    # Drawn again, two may have become one.
    return masks[box_nms(kept, torch.from_numpy(predicted[keep]), options.box_nms_thresh)] if drawn else masks


def _redrawn(
    model: TextSamNetwork, crop: EncodedImage, low_res_logits: Tensor, points: np.ndarray, place: Place
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """N masks of a crop, asked for by a point each, with their details: RLEs of the photo's size, and boxes (N, 4)."""
    rles, boxes = [], []
    height, width = crop.geometry.original_size_hw
    for start in range(0, len(points), CROPS_AT_A_TIME):  # as many masks of the photo's size are there at a time
        some = slice(start, start + CROPS_AT_A_TIME)
        asked = Asked(points=points[some, None], labels=np.ones((len(points[some]), 1), dtype=np.int64))
        for mask in masks_of_photo(model, crop.pixels, low_res_logits[some], crop.geometry, asked):
            whole = np.zeros(place.size_hw, dtype=bool)
            whole[place.top : place.top + height, place.left : place.left + width] = mask
            rles.append(encode_mask(whole))
            boxes.append(boxes_of_masks(whole[None])[0])
    return rles, np.array(boxes, dtype=np.int64).reshape(-1, 4)


def _decode_points(model: TextSamNetwork, crop: EncodedImage, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """(P, 2) points in px of the crop -> logits (P * M, 4h, 4w) and predicted IoUs (P * M,) float32."""
    coords = torch.from_numpy(crop.geometry.points_to_input(points)).float().to(model.device)[:, None]
    labels = torch.ones(len(points), 1, dtype=torch.int64, device=model.device)
    prompts = model.encode_prompts(crop.embeddings, point_coords=coords, point_labels=labels)
    out = model.decode_masks(crop.embeddings, prompts, multimask_output=True)
    return out.low_res_logits.flatten(0, 1), out.iou_predictions.flatten().float()


def _is_cut_off(box: tuple[int, ...], crop_box: tuple[int, ...], size_hw: tuple[int, int]) -> bool:
    """Whether a mask ends near an edge of its crop that is not an edge of the photo."""
    left, top = crop_box[:2]
    photo = (0, 0, size_hw[1], size_hw[0])
    own = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return any(
        abs(at - edge) <= _CROP_EDGE_PX and abs(at - border) > _CROP_EDGE_PX
        for at, edge, border in zip(own, crop_box, photo, strict=True)
    )


def box_nms(boxes_xyxy: np.ndarray, scores: Tensor, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes that no better one overlaps more than the threshold, best first."""
    from torchvision.ops import nms

    return np.asarray(nms(torch.from_numpy(boxes_xyxy).float(), scores.float(), iou_threshold))


def _join(parts: list[AutomaticMasks]) -> AutomaticMasks:
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    return AutomaticMasks(parts[0].size_hw, [rle for part in parts for rle in part.rles], **arrays)


def clean_masks(masks: AutomaticMasks, min_area: int, iou_threshold: float) -> AutomaticMasks:
    """Remove small holes, then small islands, then what has become a duplicate; masks that needed no mending win."""
    if not len(masks):
        return masks
    rles, boxes, unchanged = list(masks.rles), masks.boxes_xyxy.copy(), np.ones(len(masks), dtype=bool)
    for i, rle in enumerate(masks.rles):
        mask, filled = remove_small_regions(decode_mask(rle), min_area, holes=True)
        mask, cleared = remove_small_regions(mask, min_area, holes=False)
        if filled or cleared:
            unchanged[i] = False
            rles[i], boxes[i] = encode_mask(mask), boxes_of_masks(mask[None])[0]
    keep = box_nms(boxes, torch.from_numpy(unchanged), iou_threshold)
    return replace(masks, rles=rles, boxes_xyxy=boxes)[keep]


def remove_small_regions(mask: np.ndarray, min_area: int, holes: bool) -> tuple[np.ndarray, bool]:
    """Fill holes, or drop islands, that are smaller than `min_area` px; diagonal neighbours belong together.

    Args:
        mask: (H, W) bool.
        holes: True fills holes; False drops islands, of which the largest stays when all are small.
    Returns:
        The mask, and whether anything changed.
    """
    from scipy import ndimage

    labels, count = ndimage.label(~mask if holes else mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    if holes:
        return mask | small[labels], True
    if small[1:].all():
        small[1 + np.argmax(areas[1:])] = False
    return mask & ~small[labels], True
