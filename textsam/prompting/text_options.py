"""The constants of text prompting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextPromptOptions:
    """Every constant of text prompting.

    Attributes:
        presence_threshold: a text whose presence is below it is taken as absent, and no guess is made.
        confidence_threshold: instances of a lower confidence are dropped, unless the caller gives a threshold.
        share_of_best: so are those under this share of the confidence of the same text's best: what is faint beside a
            sure find is mostly a part of it or something alike (chosen on training pictures, see `train/README.md`).
        region_threshold: similarity probability above which a position belongs to a text's region.
        peak_threshold: similarity probability that a peak needs to become a point.
        peak_radius: a peak is the maximum of a window of 2 * radius + 1 positions of the similarity map.
        points_per_side: with a similarity head: spacing of the grid points that cover a region, as points per long
            side of the photo, beside the peaks.
        grid_points_per_side: without a similarity head: the whole grid's.
        max_points: at most this many points for each text, the most similar first.
        use_boxes: also ask with the box of each connected region.
        min_region: a connected region of fewer positions of the map (boxes) or the mask (instances) does not count.
        part_share: guesses take the place of a region when at least this share of each lies in it, and of it in them.
        points_per_batch: prompts in one decoder call.
        multimask_output: let each point offer three masks, of which the best scored is kept.
        ring_weight: how far similarity just outside a mask counts against it (a part of a thing has the rest around).
        iou_threshold, containment_threshold: see `mask_nms`.
        same_mask_iou: of masks of different texts whose IoU is above it, the most confident stays; 1 keeps all.
        min_stability: masks whose stability score is below it are dropped.
        click_rounds: a text beside one click: how often the two are asked again about the mean of what the click alone
            and the two together said; 0: never.
    """

    presence_threshold: float = 0.2
    confidence_threshold: float = 0.45
    share_of_best: float = 0.8
    region_threshold: float = 0.5
    peak_threshold: float = 0.5
    peak_radius: int = 2
    points_per_side: int = 8
    grid_points_per_side: int = 16
    max_points: int = 16
    use_boxes: bool = False
    min_region: int = 4
    part_share: float = 0.75
    points_per_batch: int = 64
    multimask_output: bool = False
    ring_weight: float = 0.5
    iou_threshold: float = 0.5
    containment_threshold: float = 0.8
    same_mask_iou: float = 0.8
    min_stability: float = 0.3
    click_rounds: int = 1
