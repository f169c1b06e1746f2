"""One training step of TextSAM: geometry in rounds, text with its presence, the similarity map.

A module whose forward takes samples and returns losses, so that one wrapper (DDP, FSDP) covers all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings, MaskPredictions
from train.data import Sample
from train.embedding_table import EmbeddingTable
from train.imagenet_teacher import ImageNetTeacher, distillation_loss
from train.interactive import noisy_boxes, uniform_error_clicks
from train.losses import balance, bce_loss, dice_loss, focal_loss, mask_iou


@dataclass(frozen=True)
class LossWeights:
    """The paper has focal 20, dice 1, IoU 1 and no more. A small model on little data predicts nothing anywhere with
    that for hundreds of steps; a cross entropy balanced between mask and background gets it going. The predicted IoU,
    which has to choose among three masks, would be drowned by it at 1."""

    focal: float = 5.0
    bce: float = 2.0
    dice: float = 2.0
    iou: float = 3.0
    text: float = 1.0  # the masks of text alone, beside those of the other prompts
    presence: float = 0.5
    image_presence: float = 1.0
    similarity: float = 1.0
    taught: float = 0.5  # what the ImageNet classifier says, by places and of the whole picture


@dataclass
class Objects:
    """N instances to prompt for, and what is known of them."""

    image_index: Tensor  # (N,)
    masks: Tensor  # (N, S/4, S/4)
    weights: Tensor  # (N, S/4, S/4)
    boxes: Tensor  # (N, 4)
    clicks: Tensor  # (N, 2)
    text: Tensor  # (N, D) CLIP embedding of the instance's crop or name, meaningful where one is known

    def take(self, rows: Tensor) -> Objects:
        return Objects(**{name: value[rows] for name, value in vars(self).items()})


OBJECTS_PER_PICTURE = 4
FIRST_PROMPTS = {"box": 0.25, "text_box": 0.2, "point": 0.25, "text_point": 0.3}


class TextSamStep(nn.Module):
    """
    Args:
        model: what is trained.
        table: CLIP embeddings of names and crops.
        rounds: decoder rounds for geometry, the first included.
        fixed_count: as many prompts in every step, whatever the pictures hold: a GPU's libraries take about a second to
            plan for a new shape.
        queries: names asked of each picture: one that is there, the others not.
        distractors: absent names of each picture from outside its data set's list, for the maps and the whole image.
        crop_share: how often a prompt is the crop's embedding rather than the name's, where both are known.
        named_clicks: share of the first prompts that are a click with a text; the other kinds keep their proportions.
            A kind's losses weigh by its share.
        teacher: the classifier that the trunk came from, to learn from which name a place looks like most.
        noise: standard deviation of Gaussian noise on each prompt embedding, times its length (modality gap).
    """

    samples_on_device = True

    def __init__(
        self,
        model: TextSamModel,
        table: EmbeddingTable,
        *,
        rounds: int = 2,
        fixed_count: bool = False,
        queries: int = 3,
        distractors: int = 12,
        crop_share: float = 0.5,
        named_clicks: float = 0.3,
        noise: float = 0.2,
        loss_weights: LossWeights | None = None,
        teacher: ImageNetTeacher | None = None,
    ) -> None:
        super().__init__()
        self.model, self.table = model, table
        self.rounds, self.queries, self.crop_share, self.noise = rounds, queries, crop_share, noise
        self.distractors, self.fixed_count = distractors, fixed_count
        others = (1 - named_clicks) / (1 - FIRST_PROMPTS["text_point"])
        self.shares = {kind: share * others for kind, share in FIRST_PROMPTS.items()} | {"text_point": named_clicks}
        self.loss_weights = loss_weights or LossWeights()
        self.teacher = teacher

    def forward(self, samples: list[Sample], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, each already weighted, and figures to log under names that begin with "_"."""
        config, device = self.model.config, self.model.device
        pixels = torch.stack([sample.pixels for sample in samples]).float()
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        image = self.model.encode_image(pixels)
        results: dict[str, Tensor] = {}
        objects, known = self._objects(samples, generator)
        count = OBJECTS_PER_PICTURE * len(samples) if self.fixed_count else None
        for kind, rows in _first_prompts(known, self.shares, count, generator).items():
            if len(rows):
                self._geometry(image, objects.take(rows.to(device)), kind, generator, results)
        absent = [self._absent(sample, generator) for sample in samples]
        self._text(image, samples, absent, generator, results)
        if config.similarity_head:
            self._every_name(image, samples, absent, results)
            if self.teacher is not None:
                self._taught(image, self.teacher(pixels), self.teacher.names, samples, results)
        if not results:  # no object and no known name in any picture: other processes wait for a gradient all the same
            results["nothing"] = 0 * next(p for p in self.model.parameters() if p.requires_grad).sum()
        return results

    def _absent(self, sample: Sample, generator: torch.Generator) -> Tensor:
        """Names that the picture is taken not to show: those of its data set's list, and distractors."""
        if not len(sample.absent):
            return sample.absent
        absent = self.table.other_things(sample.absent, list(sample.present))
        drawn = self.table.draw_distractors(list(sample.present), self.distractors, generator)
        return torch.cat([absent, drawn[~torch.isin(drawn, absent)]])

    def texts_of(self, names: list[int]) -> Tensor:
        """(Q, D) what stands for names when each is compared with every picture of the batch."""
        return self.table.names[names]

    def text_of(self, name: int, key: tuple[str, int | str] | None, generator: torch.Generator) -> Tensor:
        """(D,) what asks for a name: its embedding, or that of the crop of an instance of it."""
        variants = self.table.crops.get(key)
        use_crop = variants is not None and _uniform(generator) < self.crop_share
        return variants[0].float() if use_crop else self.table.names[name]

    # -- geometry ------------------------------------------------------------------------------------------------

    def _objects(self, samples: list[Sample], generator: torch.Generator) -> tuple[Objects, Tensor]:
        """All instances, and on the CPU which of them (N,) have a text."""
        counts = torch.tensor([len(sample.masks) for sample in samples])
        index = torch.arange(len(samples)).repeat_interleave(counts)
        keys = [key for sample in samples for key in sample.keys]
        names = torch.cat([sample.names for sample in samples])
        text, known = self._instance_text(keys, names, generator)
        weights = torch.stack([sample.weights for sample in samples])
        index = index.to(weights.device)
        objects = Objects(
            index,
            torch.cat([sample.masks for sample in samples]),
            weights[index],
            torch.cat([sample.boxes for sample in samples]),
            torch.cat([sample.clicks for sample in samples]),
            text.to(weights.device),
        )
        return objects, known

    def _instance_text(
        self, keys: list[tuple[str, int | str]], names: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A CLIP embedding for each instance: of its crop (D.5) or of its name; and which have one."""
        rows, known = [], []
        for key, name in zip(keys, names.tolist(), strict=True):
            crops = self.table.crops.get(key)
            use_crop = crops is not None and (name < 0 or _uniform(generator) < self.crop_share)
            if use_crop:
                rows.append(crops[int(_uniform(generator) * len(crops))].float())
            else:
                rows.append(self.table.names[max(name, 0)])
            known.append(use_crop or name >= 0)
        text = torch.stack(rows) if rows else self.table.names[:0]
        return self._perturb(text, generator), torch.tensor(known, dtype=torch.bool)

    def _perturb(self, text: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(text.shape, generator=generator) * self.noise * text.shape[-1] ** -0.5
        return F.normalize(text + noise, dim=-1)

    def _geometry(
        self, image: ImageEmbeddings, group: Objects, kind: str, generator: torch.Generator, results: dict[str, Tensor]
    ) -> None:
        """Rounds of prompts on one group; every round contributes to the loss."""
        boxes = noisy_boxes(group.boxes, image.input_size[0], generator) if "box" in kind else None
        coords = labels = None
        if boxes is None:
            coords = group.clicks[:, None]
            labels = torch.ones(len(coords), 1, dtype=torch.int64, device=coords.device)
        text = group.text if "text" in kind else None
        weight = self.shares[kind] / FIRST_PROMPTS[kind]
        mask_input = None
        for number in range(self.rounds):
            prompts = self.model.encode_prompts(
                image,
                point_coords=coords,
                point_labels=labels,
                boxes=boxes,
                mask_input=mask_input,
                text_embeddings=text,
                image_index=group.image_index,
            )
            out = self.model.decode_masks(image, prompts, multimask_output=None, image_index=group.image_index)
            ambiguous = number == 0 and kind == "point"
            chosen = self._mask_losses(out, group, ambiguous, f"{kind}{number}", weight, results)
            if number + 1 < self.rounds:
                draws = torch.rand(len(chosen), 3, generator=generator).to(chosen.device)
                click, label = uniform_error_clicks(chosen, group.masks, group.weights, 4, draws)
                coords = click if coords is None else torch.cat([coords, click], 1)
                labels = label if labels is None else torch.cat([labels, label], 1)
                mask_input = chosen[:, None]

    def _mask_losses(
        self,
        out: MaskPredictions,
        group: Objects,
        ambiguous: bool,
        name: str,
        weight: float,
        results: dict[str, Tensor],
    ) -> Tensor:
        """Adds the losses of one round; returns the logits (N, h, w) that the next round gets, without gradient.

        The single mask learns from every prompt; of the three, the best one learns from an ambiguous prompt.
        """
        logits = out.low_res_logits.float()
        count = 4 if ambiguous else 1
        logits, predicted_iou = logits[:, :count], out.iou_predictions.float()[:, :count]
        targets, weights = (x[:, None].expand_as(logits) for x in (group.masks, group.weights))
        each = self._mask_loss(logits, targets, weights)
        iou = mask_iou(logits, targets, weights)
        loss = each[:, 0].mean()
        if ambiguous:
            loss = loss + each[:, 1:].min(dim=1).values.mean()
        _add(results, "mask", weight * loss)
        _add(results, "iou", weight * self.loss_weights.iou * F.mse_loss(predicted_iou, iou))
        results[f"_{name}"] = iou[:, 0].mean()
        rows = torch.arange(len(logits), device=logits.device)
        pick = torch.zeros_like(rows)
        if ambiguous:
            pick = 1 + predicted_iou[:, 1:].argmax(dim=1)
            results[f"_{name}_best"] = iou[:, 1:].max(dim=1).values.mean()
        return logits[rows, pick].detach()

    def _mask_loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        w = self.loss_weights
        loss = w.focal * focal_loss(logits, targets, weights) + w.dice * dice_loss(logits, targets, weights)
        return loss + w.bce * bce_loss(logits, targets, balance(targets, weights)) if w.bce else loss

    # -- text ----------------------------------------------------------------------------------------------------

    def _text(
        self,
        image: ImageEmbeddings,
        samples: list[Sample],
        absent: list[Tensor],
        generator: torch.Generator,
        results: dict[str, Tensor],
    ) -> None:
        """Text alone: the union of all instances of the name, and whether it is there.

        The prompt is the name's embedding or, as in D.5, that of the crop of one of its instances.
        """
        queries = self._queries(image, samples, absent, generator)
        asked = [(b, name) for b, names in enumerate(queries) for name in names]
        if not asked:
            return
        if self.fixed_count:
            asked = list(islice(cycle(asked), self.queries * len(samples)))
        device, nothing = image.image_embeddings.device, torch.zeros_like(samples[0].weights)
        crops = [dict(zip(sample.names.tolist(), sample.keys, strict=True)) for sample in samples]
        text = torch.stack([self.text_of(name, crops[b].get(name), generator) for b, name in asked])
        text = self._perturb(text, generator).to(device)
        targets = torch.stack([samples[b].present.get(name, nothing) for b, name in asked])
        weight = torch.stack([samples[b].weights for b, _ in asked])
        image_index = torch.tensor([b for b, _ in asked]).to(device)
        prompts = self.model.encode_prompts(image, text_embeddings=text, image_index=image_index)
        out = self.model.decode_masks(image, prompts, multimask_output=False, image_index=image_index)
        logits = out.low_res_logits.float()[:, 0]
        there = torch.tensor([name in samples[b].present for b, name in asked])
        iou = mask_iou(logits, targets, weight)
        if there.any():
            shown = there.nonzero()[:, 0].to(device)
            loss = self._mask_loss(logits[shown], targets[shown], weight[shown]).mean()
            _add(results, "text", self.loss_weights.text * loss)
            _add(results, "iou", self.loss_weights.iou * F.mse_loss(out.iou_predictions.float()[shown, 0], iou[shown]))
            results["_text"] = iou[shown].mean()
        there = there.to(device)
        presence = F.binary_cross_entropy_with_logits(out.presence_logits.float(), there.float())
        results["presence"] = self.loss_weights.presence * presence
        results["_presence"] = ((out.presence_logits > 0) == there).float().mean()

    def _queries(
        self, image: ImageEmbeddings, samples: list[Sample], absent: list[Tensor], generator: torch.Generator
    ) -> list[list[int]]:
        """Names to ask each picture for: one that it shows, and others that it does not; of these, one that it is most
        easily taken for, the rest at random."""
        shown, others = [], []
        for sample, names in zip(samples, absent, strict=True):
            present = list(sample.present)
            shown.append([present[i] for i in torch.randperm(len(present), generator=generator)[:1].tolist()])
            others.append(names[torch.randperm(len(names), generator=generator)].tolist())
        if self.model.config.similarity_head:
            others = self._hardest_first(image, others)
        return [names + rivals[: self.queries - 1] for names, rivals in zip(shown, others, strict=True)]

    @torch.no_grad()
    def _hardest_first(self, image: ImageEmbeddings, absent: list[list[int]]) -> list[list[int]]:
        """The absent names of each picture in their order, but that of the first ones which the picture is most easily
        taken for before all others."""
        names = sorted({name for picture in absent for name in picture[:RIVALS]})
        if not names:
            return absent
        column = {name: i for i, name in enumerate(names)}
        maps = self.model.text_similarity(image, self.table.names[names].to(image.image_embeddings.device))
        likeness = maps.flatten(2).amax(2).tolist()
        ordered = []
        for row, picture in zip(likeness, absent, strict=True):
            hardest = max(picture[:RIVALS], key=lambda name: row[column[name]], default=None)
            ordered.append(sorted(picture, key=lambda name: name != hardest))
        return ordered

    def _image_presence(
        self,
        image: ImageEmbeddings,
        samples: list[Sample],
        absent: list[Tensor],
        names: list[int],
        results: dict[str, Tensor],
    ) -> None:
        """Every name against every whole picture of which it is known whether it is there."""
        rows = {name: q for q, name in enumerate(names)}
        targets = torch.full((len(samples), len(names)), -1.0)  # -1: unknown
        for b, sample in enumerate(samples):
            targets[b, [rows[name] for name in absent[b].tolist()]] = 0.0
            targets[b, [rows[name] for name in sample.present]] = 1.0
        logits = self.model.image_presence(image, self.texts_of(names).to(image.image_embeddings.device))
        known = bool((targets == 1).any()) and bool((targets == 0).any())
        targets = targets.to(logits.device)
        there, missing = targets == 1, targets == 0
        each = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
        loss = (each * (there | missing)).sum() / there.sum().clamp(min=1) / 2
        results["image_presence"] = self.loss_weights.image_presence * loss
        if known:
            results["_image_presence"] = (logits[there][:, None] > logits[missing]).float().mean()

    def _every_name(
        self, image: ImageEmbeddings, samples: list[Sample], absent: list[Tensor], results: dict[str, Tensor]
    ) -> None:
        """Every name of the batch, and its distractors, against every picture of which it is known whether it is
        there: as a map and as a whole."""
        names = sorted({name for sample in samples for name in sample.present} | set(torch.cat(absent).tolist()))
        if not names:
            return
        if self.model.config.image_presence:
            self._image_presence(image, samples, absent, names, results)
        present = {name for sample in samples for name in sample.present}
        # Maps are large: of the names that no picture of the batch shows, a few.
        others = [name for name in names if name not in present]
        names = sorted(present) + others[:: max(1, len(others) // MAP_ABSENTEES)]
        device = image.image_embeddings.device
        logits = self.model.text_similarity(image, self.texts_of(names).to(device)).float()
        size = logits.shape[-2:]
        column = {name: q for q, name in enumerate(names)}
        shown = [(b, name) for b, sample in enumerate(samples) for name in sample.present]
        targets = torch.zeros_like(logits)
        if shown:
            rows, columns = [b for b, _ in shown], [column[name] for _, name in shown]
            masks = torch.stack([samples[b].present[name] for b, name in shown])
            targets[rows, columns] = F.adaptive_avg_pool2d(masks, size)
        known = torch.zeros(logits.shape[:2])
        for b, sample in enumerate(samples):
            at_hand = [*sample.present, *absent[b].tolist()]
            known[b, [column[name] for name in at_hand if name in column]] = 1.0
        known = known.to(device)
        weights = F.adaptive_avg_pool2d(torch.stack([sample.weights for sample in samples])[:, None], size)
        weights = weights.expand_as(logits)
        there = targets.flatten(2).sum(2) > 0
        pixel = 2 * bce_loss(logits, targets, balance(targets, weights))
        dice = dice_loss(logits, targets, weights)
        # Most names are absent from most pictures: the two kinds weigh the same, however many there are.
        absent_known = known * ~there
        loss = (pixel * there).sum() / there.sum().clamp(min=1) / 2
        loss = loss + (pixel * absent_known).sum() / absent_known.sum().clamp(min=1) / 2
        loss = loss + (dice * there).sum() / there.sum().clamp(min=1)
        results["similarity"] = self.loss_weights.similarity * loss
        iou = mask_iou(logits, targets, weights)
        results["_similarity"] = (iou * there).sum() / there.sum().clamp(min=1)

    def _taught(
        self,
        image: ImageEmbeddings,
        taught: Tensor,
        names: list[int],
        samples: list[Sample],
        results: dict[str, Tensor],
    ) -> None:
        """Of the N names that the ImageNet classifier knows, the one that it sees at each place and in each picture:
        `taught` is (B, N, h, w)."""
        size = taught.shape[-2:]
        weights = torch.stack([sample.weights for sample in samples])[:, None]
        taught = taught * F.adaptive_avg_pool2d(weights, size)
        texts = self.texts_of(names).to(taught.device)
        coarse = F.adaptive_avg_pool2d(image.similarity_features.float(), size)
        logits = self.model.text_similarity(replace(image, similarity_features=coarse), texts)
        loss = distillation_loss(logits.movedim(1, -1), taught.movedim(1, -1))
        if self.model.config.image_presence:
            loss = loss + distillation_loss(self.model.image_presence(image, texts), taught.mean((2, 3)))
        results["taught"] = self.loss_weights.taught * loss


MAP_ABSENTEES = 32
RIVALS = 16  # absent names among which the hardest is looked for; more would find what is only not annotated


def _first_prompts(
    has_text: Tensor, shares: dict[str, float], count: int | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Rows of each kind of first prompt: box or point, with text only where it is known.

    Args:
        has_text: (N,) bool.
        shares: of the four kinds, 1 together.
        count: of all rows together, by shares that are the same in every step; None: each instance once, by chance.
    """
    if count is not None:
        every = torch.arange(len(has_text))
        parts = {}
        for kind, share in shares.items():
            rows = every[has_text] if "text" in kind else every
            rows = rows[torch.randperm(len(rows), generator=generator)]
            wanted = round(share * count)
            parts[kind] = rows.repeat(-(-wanted // max(len(rows), 1)))[:wanted]
        return parts
    draw = torch.rand(len(has_text), generator=generator)
    boxes = shares["text_box"] + shares["box"]
    box, with_text = draw < boxes, has_text & ((draw < shares["text_box"]) | (draw >= boxes + shares["point"]))
    kinds = {
        "box": box & ~with_text,
        "text_box": box & with_text,
        "point": ~box & ~with_text,
        "text_point": ~box & with_text,
    }
    return {kind: rows.nonzero()[:, 0] for kind, rows in kinds.items()}


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _add(results: dict[str, Tensor], name: str, value: Tensor) -> None:
    results[name] = results[name] + value if name in results else value
