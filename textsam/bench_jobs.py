"""What the benchmark times: the same work by this project and by transformers, on the same random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms

from textsam.checkpoints.conversion import config_from_transformers, convert_transformers_state_dict
from textsam.files.rle import encode_mask
from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from textsam.prompting.automatic import generate
from textsam.prompting.automatic_options import AutomaticOptions
from textsam.prompting.detections import stability_scores
from textsam.prompting.transforms import ImageGeometry, postprocess_masks

# Sizes of the vision encoder. "tiny" only shows that the command works.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "global_attn_indexes": [1],
        "image_size": 128,
        "window_size": 3,
    },
    "b": {},
    "l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}


def build_pair(size: str, device: torch.device | str = "cpu") -> tuple[Any, TextSamModel]:
    """transformers' SAM with scaled-dot-product attention, and ours with the same random weights, norms included.

    They are made on the device: drawing the weights of the largest takes a CPU longer than everything else a GPU.
    """
    with torch.device(device):
        return _build_pair(size)


def _build_pair(size: str) -> tuple[Any, TextSamModel]:
    from transformers import SamConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(0)
    vision = SamVisionConfig(**SIZES[size])
    prompt = SamPromptEncoderConfig(image_size=vision.image_size)
    config = SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict())
    theirs = SamModel._from_config(config, attn_implementation="sdpa").eval()
    for name, parameter in theirs.named_parameters():  # everything: a zero somewhere would make all outputs equal
        if "norm" in name:
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.1)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.02 if parameter.ndim > 1 else 0.1)
    theirs.mask_decoder.upscale_conv2.bias.zero_()
    for mlp in theirs.mask_decoder.output_hypernetworks_mlps:
        # Logits of several units that are as often positive as negative, so that masks have outlines.
        mlp.proj_out.weight.sub_(mlp.proj_out.weight.mean(0)).mul_(200)
        mlp.proj_out.bias.zero_()
    for module in theirs.mask_decoder.transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5  # the original's; transformers' 1e-6 would show as a difference
    ours_config = config_from_transformers(config.to_dict())
    ours = TextSamModel(ours_config).eval()
    ours.load_state_dict(convert_transformers_state_dict(theirs.state_dict(), ours_config), strict=False)
    return theirs, ours


def encoder_job(
    ours: TextSamModel, theirs: Any, pixel_values: Tensor
) -> tuple[str, Callable[[], Tensor], Callable[[], Tensor]]:
    """One picture."""
    return (
        "encoder",
        lambda: ours.encode_image(pixel_values).image_embeddings,
        lambda: theirs.get_image_embeddings(pixel_values),
    )


def decoder_job(
    ours: TextSamModel, theirs: Any, embeddings: Tensor, count: int
) -> tuple[str, Callable[[], Tensor], Callable[[], Tensor]]:
    """`count` prompts of one point each on an encoded image, in one call."""
    side = ours.config.image_size
    coords = (torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(2)) * side).to(embeddings.device)
    labels = torch.ones(count, 1, dtype=torch.int64, device=embeddings.device)
    image = ImageEmbeddings(embeddings, (side, side))

    def decode() -> Tensor:
        prompts = ours.encode_prompts(image, point_coords=coords, point_labels=labels)
        return ours.decode_masks(image, prompts, multimask_output=True).low_res_logits

    def decode_theirs() -> Tensor:
        return _their_masks(theirs, embeddings, coords)[0]

    return f"decoder, {count} point{'s' * (count > 1)}", decode, decode_theirs


def _their_masks(theirs: Any, embeddings: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.ones(1, len(coords), 1, dtype=torch.int64, device=coords.device)
    points = coords[None].to(embeddings.dtype)
    out = theirs(image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True)
    return out.pred_masks[0], out.iou_scores[0]


def generate_job(
    ours: TextSamModel, theirs: Any, embeddings: Tensor, points_per_side: int
) -> tuple[str, Callable[[], list[dict]], Callable[[], list[dict]]]:
    """Automatic masks of a 3:2 photo that is already encoded."""
    side = ours.config.image_size
    image = ImageEmbeddings(embeddings, (side, side))
    photo = np.zeros((round(side * 683 / 1024), side, 3), dtype=np.uint8)
    geometry = ImageGeometry.of(photo.shape[:2], side)
    grid = AutomaticOptions(points_per_side=points_per_side).grid(0) * np.array([photo.shape[1], photo.shape[0]])
    coords = torch.from_numpy(geometry.points_to_input(grid)).float().to(embeddings.device)[:, None]
    # Random weights have no opinion of their own: the thresholds let about a third of the masks through. All of these
    # span the photo, so that suppression by boxes would leave a single one to compare, and stays off.
    logits, iou = _their_masks(theirs, embeddings, coords[:: max(len(coords) // 8, 1)])
    least_iou = max(iou.float().median().item(), 1e-3)
    options = AutomaticOptions(
        points_per_side=points_per_side,
        pred_iou_thresh=least_iou,
        stability_score_thresh=stability_scores(postprocess_masks(logits, geometry))[iou > least_iou].median().item()
        * 0.99,
        box_nms_thresh=1.0,
    )

    def released_order() -> list[dict]:
        boxes, scores, rles = [], [], []
        for start in range(0, len(coords), options.points_per_batch):
            low_res, iou = _their_masks(theirs, embeddings, coords[start : start + options.points_per_batch])
            masks, iou = postprocess_masks(low_res, geometry).flatten(0, 1), iou.flatten()
            keep = iou > options.pred_iou_thresh
            masks, iou = masks[keep], iou[keep]
            keep = stability_scores(masks) >= options.stability_score_thresh
            masks, iou = masks[keep] > 0, iou[keep]
            boxes.append(_mask_boxes(masks))
            scores.append(iou.float())
            rles += [encode_mask(mask) for mask in masks.cpu().numpy()]
        kept = nms(torch.cat(boxes), torch.cat(scores), options.box_nms_thresh)
        return [rles[i] for i in kept.tolist()]

    def ours_all() -> list[dict]:
        return generate(ours, photo, options, embeddings=image).rles

    return f"generate, {points_per_side} x {points_per_side} points", ours_all, released_order


def _mask_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) float xyxy, zeros for an empty mask."""
    edges = []
    for axis in (1, 2):
        hit = masks.any(dim=axis).to(torch.uint8)
        size = hit.shape[1]
        edges.append((hit.argmax(1), size - 1 - hit.flip(1).argmax(1)))
    boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def mask_difference(output: list[dict], expected: list[dict]) -> float:
    """1 - the mean IoU of each RLE with the best of the other list; those of the longer list without a partner count 0.

    Most are equal to the pixel, and the IoU of every pair of a thousand masks would take longer than making them.
    """
    if not output or not expected:
        return float(len(output) != len(expected))
    shared = Counter(rle["counts"] for rle in output) & Counter(rle["counts"] for rle in expected)
    total = float(shared.total())
    ours, theirs = ([rle for rle in rles if rle["counts"] not in shared] for rles in (output, expected))
    if ours and theirs:
        total += float(coco_mask.iou(ours, theirs, [0] * len(theirs)).max(axis=1).sum())
    return 1 - total / max(len(output), len(expected))
