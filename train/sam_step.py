"""One training step of Segment Anything: interactive rounds, the first prompt a box, a point or a CLIP embedding.

Everything random is drawn by each sample's own seed, and a picture weighs the same however many masks it has: two
processes with half of a batch each compute what one process computes with all of it.

Source: Kirillov et al. 2023, appendix A, and appendix D.5 for the CLIP prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from train.data import Sample
from train.interactive import CLICKS, click_rounds, noisy_boxes, uniform_error_clicks
from train.losses import iou_loss, lowest_loss, mask_iou, sam_mask_loss
from train.stores import CropPrompts, TensorStore

FIRST = ("box", "point", "crop", "name")  # kinds of first prompt
STORED = torch.float16  # of image embeddings on disk


@dataclass(frozen=True)
class StepOptions:
    """
    Args:
        clicks: after the first prompt; two rounds without one come on top.
        text_share: of first prompts that are a CLIP embedding (D.5: 1); the others are boxes and points alike.
        name_share: of those, where the mask has a name, that are the name's embedding instead of the crop's.
        noise: standard deviation of Gaussian noise on CLIP embeddings, times their length (modality gap).
        negatives: crops of other pictures of the batch asked of each picture; the presence token is to deny them. Our
            addition, as the token is.
        same: cosine above which another picture's crop may show what is in this picture, too, and is no negative.
        presence: weight of that loss.
        chunk: prompts decoded at a time; with recomputation in the backward pass, memory does not grow with the masks.
    """

    clicks: int = CLICKS
    text_share: float = 0.0
    name_share: float = 0.0
    noise: float = 0.0
    negatives: int = 0
    same: float = 0.9
    presence: float = 0.5
    chunk: int = 16


@dataclass
class Group:
    """N objects of one kind of first prompt."""

    image_index: Tensor  # (N,)
    masks: Tensor  # (N, S/4, S/4)
    weights: Tensor  # (N, S/4, S/4)
    boxes: Tensor  # (N, 4), noisy
    clicks: Tensor  # (N, 2)
    text: Tensor  # (N, D)
    draws: Tensor  # (N, clicks, 3) uniform
    share: Tensor  # (N,) of each object in the loss; they sum to at most 1 over all groups

    def take(self, rows: Tensor | slice) -> Group:
        return Group(**{name: value[rows] for name, value in vars(self).items()})


class SamStep(nn.Module):
    """
    Args:
        model: what is trained.
        options: of the step.
        crops: gives the embeddings of crops; needed when text_share > 0.
        names: gives the embeddings (Q, D) of names; needed when name_share > 0.
        image_store: keeps the image embeddings of a frozen encoder.
    """

    random_per_process = False  # the place of the round without a click is the same everywhere

    def __init__(
        self,
        model: TextSamModel,
        options: StepOptions,
        *,
        crops: CropPrompts | None = None,
        names: nn.Module | None = None,
        image_store: TensorStore | None = None,
    ) -> None:
        super().__init__()
        if options.text_share and crops is None:
            raise ValueError("text_share > 0 needs a CLIP: give crops=CropPrompts(...)")
        self.model, self.options, self.image_store = model, options, image_store
        # Lists hide the frozen CLIP from parameters(), checkpoints and wrappers.
        self._frozen = [crops, names]
        self._known_names: dict[str, Tensor] = {}

    def forward(self, samples: list[Sample], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, weighted, and figures to log under names that begin with "_"."""
        image = self.encode(samples)
        groups, clip = self._groups(samples)
        schedule = click_rounds(self.options.clicks, generator)
        zero = torch.zeros((), device=self.model.device)
        results = {"mask": zero, "iou": zero}
        for kind, group in groups.items():
            for start in range(0, len(group.masks), self.options.chunk):
                part = group.take(slice(start, start + self.options.chunk))
                self._rounds(image, part, kind, schedule, results)
        if self.options.negatives:
            self._negatives(image, samples, clip, results)
        # A batch without a mask still has a loss, of which nothing depends on the weights: the encoder's take part by
        # way of its result, as elsewhere they may be in use by other processes.
        if not any(value.requires_grad for value in results.values()):
            parameters = dict(self.named_parameters()).items()
            others = [p for name, p in parameters if p.requires_grad and "image_encoder" not in name]
            results["mask"] = zero + 0 * image.image_embeddings.sum() + 0 * sum(p.sum() for p in others)
        return results

    def encode(self, samples: list[Sample]) -> ImageEmbeddings:
        """The samples' pictures, with what CLIP sees of them where the model takes that, too."""
        image = self._encode(samples)
        crops = self._frozen[0]
        if not self.model.config.dense_text or crops is None:
            return image
        dense = torch.stack([crops.dense(sample) for sample in samples]).to(self.model.device)
        return replace(image, similarity_features=dense)

    def _encode(self, samples: list[Sample]) -> ImageEmbeddings:
        """From the store, where there is one."""
        size = tuple(samples[0].pixels.shape[-2:])
        if self.image_store is None:
            return self.model.encode_image(self._pixels(samples))
        rows = []
        for sample in samples:
            embedding = self.image_store.read(sample.view_key).get("image") if sample.view_key else None
            if embedding is None:
                with torch.no_grad():
                    embedding = self.model.encode_image(self._pixels([sample])).image_embeddings[0].to(STORED)
                if sample.view_key:
                    self.image_store.add(sample.view_key, {"image": embedding})
            rows.append(embedding.to(self.model.device).float())
        return ImageEmbeddings(torch.stack(rows), size)

    def _pixels(self, samples: list[Sample]) -> Tensor:
        """(B, 3, S, S) normalised, the padding zero."""
        device, config = self.model.device, self.model.config
        pixels = torch.stack([sample.pixels for sample in samples]).to(device).float()
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
        pixels = (pixels - mean) / std
        for image, sample in zip(pixels, samples, strict=True):
            if sample.valid_hw is not None:
                image[:, sample.valid_hw[0] :] = 0
                image[:, :, sample.valid_hw[1] :] = 0
        return pixels

    def _groups(self, samples: list[Sample]) -> tuple[dict[str, Group], list[Tensor]]:
        """The objects by kind of first prompt; and the CLIP embeddings of each sample's crops."""
        device, options = self.model.device, self.options
        crops = self._frozen[0]
        parts: dict[str, list[Group]] = {kind: [] for kind in FIRST}
        clip = []
        for number, sample in enumerate(samples):
            count = len(sample.masks)
            text = torch.zeros(count, self.model.config.clip_dim, device=device)
            if options.text_share and crops is not None:
                text = crops.embed(sample).to(device)
            clip.append(text)
            if not count:
                continue
            generator = torch.Generator().manual_seed(sample.seed)
            draw = torch.rand(count, 3, generator=generator)
            boxes = noisy_boxes(sample.boxes, sample.pixels.shape[-1], generator)
            noise = torch.randn(text.shape, generator=generator).to(device) * options.noise * text.shape[-1] ** -0.5
            draws = torch.rand(count, max(options.clicks, 1), 3, generator=generator)
            by_text = draw[:, 0] < options.text_share
            named = torch.tensor([label is not None for label in sample.labels]) & (draw[:, 1] < options.name_share)
            chosen = {
                "box": ~by_text & (draw[:, 2] < 0.5),
                "point": ~by_text & (draw[:, 2] >= 0.5),
                "crop": by_text & ~named,
                "name": by_text & named,
            }
            if chosen["name"].any():
                text = text.clone()
                text[chosen["name"].to(device)] = self._embed_names(
                    [label for label, there in zip(sample.labels, chosen["name"].tolist(), strict=True) if there]
                )
            whole = Group(
                torch.full((count,), number),
                sample.masks,
                sample.weights.expand(count, -1, -1),
                boxes,
                sample.clicks,
                F.normalize(text + noise, dim=-1),
                draws,
                torch.full((count,), 1 / (count * len(samples))),
            )
            whole = Group(**{name: value.to(device) for name, value in vars(whole).items()})
            for kind, rows in chosen.items():
                if rows.any():
                    parts[kind].append(whole.take(rows.to(device)))
        joined = {
            kind: Group(**{name: torch.cat([getattr(g, name) for g in groups]) for name in vars(groups[0])})
            for kind, groups in parts.items()
            if groups
        }
        return joined, clip

    def _embed_names(self, labels: list[str]) -> Tensor:
        encoder = self._frozen[1]
        if encoder is None:
            raise ValueError("name_share > 0 needs a text encoder: give names=TextEncoder(...)")
        if new := sorted({label for label in labels if label not in self._known_names}):
            self._known_names.update(zip(new, encoder.encode(new), strict=True))
        return torch.stack([self._known_names[label] for label in labels]).to(self.model.device)

    def _rounds(
        self, image: ImageEmbeddings, group: Group, kind: str, schedule: list[bool], results: dict[str, Tensor]
    ) -> None:
        """All rounds of some objects; every round contributes alike, which the paper leaves open."""
        coords = labels = mask_input = None
        if kind == "point":
            coords, labels = group.clicks[:, None], torch.ones_like(group.image_index)[:, None]
        clicks = 0
        for number, brings_click in enumerate([False, *schedule]):
            if brings_click and mask_input is not None:
                click, label = uniform_error_clicks(
                    mask_input[:, 0], group.masks, group.weights, 4, group.draws[:, clicks]
                )
                coords = click if coords is None else torch.cat([coords, click], 1)
                labels = label if labels is None else torch.cat([labels, label], 1)
                clicks += 1
            logits, predicted, presence = checkpoint(
                self._decode, image, group, kind, coords, labels, mask_input, use_reentrant=False
            )
            # One prompt is ambiguous: three masks. Several prompts, a former mask among them: the single mask. Text
            # alone is read as a single mask in use, so that one learns from it, too.
            masks = slice(1, None) if number == 0 else slice(0, 1)
            chosen = self._score(logits[:, masks], predicted[:, masks], group, 1 + len(schedule), results)
            if number == 0 and kind in ("crop", "name"):
                self._score(logits[:, :1], predicted[:, :1], group, 1 + len(schedule), results)
                target = torch.ones_like(presence)
                each = F.binary_cross_entropy_with_logits(presence, target, reduction="none")
                _add(results, "presence", self.options.presence * (each * group.share).sum())
            with torch.no_grad():
                iou = mask_iou(chosen, group.masks, group.weights).mean()
                if number in (0, len(schedule)):
                    results[f"_{kind}{number}"] = iou
            mask_input = chosen[:, None]

    def _decode(
        self,
        image: ImageEmbeddings,
        group: Group,
        kind: str,
        coords: Tensor | None,
        labels: Tensor | None,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All four masks (N, 4, h, w), their predicted IoUs, and presence logits, zeros without text."""
        text = group.text if kind in ("crop", "name") else None
        prompts = self.model.encode_prompts(
            image,
            point_coords=coords,
            point_labels=labels,
            boxes=group.boxes if kind == "box" else None,
            mask_input=mask_input,
            text_embeddings=text,
            modality="image" if kind == "crop" else "text",
            image_index=group.image_index,
        )
        out = self.model.decode_masks(image, prompts, multimask_output=None, image_index=group.image_index)
        presence = out.iou_predictions.new_zeros(len(group.masks)) if text is None else out.presence_logits
        return out.low_res_logits.float(), out.iou_predictions.float(), presence.float()

    def _score(
        self, logits: Tensor, predicted: Tensor, group: Group, rounds: int, results: dict[str, Tensor]
    ) -> Tensor:
        """Adds the losses of one round; returns the logits (N, h, w) of the highest predicted IoU, without gradient."""
        targets, weights = (x[:, None].expand_as(logits) for x in (group.masks, group.weights))
        mask = lowest_loss(sam_mask_loss(logits, targets, weights))
        error = iou_loss(predicted, mask_iou(logits, targets, weights))
        _add(results, "mask", (mask * group.share).sum() / rounds)
        _add(results, "iou", (error * group.share).sum() / rounds)
        return logits[torch.arange(len(logits), device=logits.device), predicted.argmax(1)].detach()

    def _negatives(
        self, image: ImageEmbeddings, samples: list[Sample], clip: list[Tensor], results: dict[str, Tensor]
    ) -> None:
        """Crops of other pictures of the batch, which this one is taken not to show."""
        texts, index = [], []
        for number, sample in enumerate(samples):
            others = torch.cat([*clip[:number], *clip[number + 1 :]])
            if len(clip[number]) and len(others):
                others = others[(others @ clip[number].T).amax(1) < self.options.same]
            generator = torch.Generator().manual_seed(sample.seed + 1)
            order = torch.randperm(len(others), generator=generator)[: self.options.negatives]
            texts.append(others[order.to(others.device)])
            index += [number] * len(order)
        if not index:
            return
        image_index = torch.tensor(index, device=self.model.device)
        prompts = self.model.encode_prompts(
            image, text_embeddings=torch.cat(texts), modality="image", image_index=image_index
        )
        out = self.model.decode_masks(image, prompts, multimask_output=False, image_index=image_index)
        logits = out.presence_logits.float()
        absent = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        _add(results, "presence", self.options.presence * absent)
        results["_absent"] = (logits < 0).float().mean()


def _add(results: dict[str, Tensor], name: str, value: Tensor) -> None:
    results[name] = results[name] + value if name in results else value
