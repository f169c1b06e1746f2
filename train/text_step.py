"""One training step on written text: the levels asked for in words, strokes redrawn, words asked for by box and click.

Batches of objects (`train.data.Sample`) go to `TextSamStep`, so that a model keeps what it knew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.model import TextSamModel
from textsam.modeling.structures import ImageEmbeddings
from train.interactive import noisy_boxes
from train.level_names import LEVELS
from train.losses import balance, bce_loss, dice_loss, mask_iou
from train.step import LossWeights, TextSamStep
from train.text_data import TextSample
from train.text_targets import CORES

STROKE = LEVELS.index("text stroke")
LINE = LEVELS.index("text line")
SPLIT = [LEVELS.index(name) for name in CORES]  # levels whose instances are told apart by the gaps between them
GAP_CELLS, GAP_WEIGHT = 15, 8.0


class WrittenTextStep(nn.Module):
    """
    Args:
        model: what is trained.
        level_embeddings: (5, D) of `LEVELS`, of unit length.
        objects: the step for batches of objects, on the same model; None when there are none.
        transcripts: texts to (N, D) embeddings, by a CLIP that reads any text; None: words are never asked for by what
            they say. Other places that say the same are taken for background.
        queries: levels asked of each picture.
        fixed_count: as many masks in every step, as in `TextSamStep`.
        noise: standard deviation of Gaussian noise on each embedding, times its length.
    """

    samples_on_device = True

    def __init__(
        self,
        model: TextSamModel,
        level_embeddings: Tensor,
        objects: TextSamStep | None = None,
        *,
        transcripts: Callable[[list[str]], Tensor] | None = None,
        queries: int = 3,
        fixed_count: bool = False,
        noise: float = 0.1,
        loss_weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objects, self.transcripts = model, objects, transcripts
        self.queries, self.noise, self.fixed_count = queries, noise, fixed_count
        self.loss_weights = loss_weights or LossWeights()
        self.register_buffer("level_embeddings", level_embeddings, persistent=False)

    def forward(self, samples: list, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, weighted, and figures under names that begin with "_"."""
        if not isinstance(samples[0], TextSample):
            if self.objects is None:
                raise ValueError("a batch of objects came, but the step was built without objects=")
            return {_renamed(name): value for name, value in self.objects(samples, generator).items()}
        config, device = self.model.config, self.level_embeddings.device
        pixels = torch.stack([sample.pixels for sample in samples]).float()
        mean, std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        image = self.model.encode_image(pixels)
        results: dict[str, Tensor] = {}
        levels = _all_levels(samples)
        known = torch.tensor([[name in sample.levels for name in LEVELS] for sample in samples])
        self._levels(image, samples, (levels.flatten(2).sum(2) > 0.5).any(1).tolist(), generator, results)
        if config.similarity_head:
            self._maps(image, samples, levels, known.to(device), results)
        if config.image_presence:
            self._whole_images(image, levels, known.to(device), results)
        self._words(image, samples, generator, results)
        return results

    # -- levels --------------------------------------------------------------------------------------------------

    def _levels(
        self,
        image: ImageEmbeddings,
        samples: list[TextSample],
        written: list[bool],
        generator: torch.Generator,
        results: dict[str, Tensor],
    ) -> None:
        """Text alone: some levels of each picture, and whether there is text at all (`written`); strokes redrawn."""
        pairs = [(b, level) for b in range(len(samples)) for level in self._draw(samples[b], written[b], generator)]
        device = self.level_embeddings.device
        index = torch.tensor([b for b, _ in pairs], device=device)
        asked = torch.tensor([level for _, level in pairs], device=device)
        targets = torch.stack([samples[b].levels[LEVELS[level]] for b, level in pairs])
        weights = torch.stack([samples[b].weights for b, _ in pairs])
        prompts = self.model.encode_prompts(image, text_embeddings=self._embed(asked, generator), image_index=index)
        out = self.model.decode_masks(image, prompts, multimask_output=False, image_index=index)
        logits = out.low_res_logits.float()[:, 0]
        there = (targets * weights).flatten(1).sum(1) > 0.5
        iou = mask_iou(logits, targets, weights)
        if there.any():
            words = torch.stack([samples[b].levels.get("word", torch.ones_like(samples[b].weights)) for b, _ in pairs])
            stressed = weights * (1 + GAP_WEIGHT * self._stress(asked, targets, words))
            results["text"] = self._mask_loss(logits[there], targets[there], stressed[there]).mean()
            error = F.mse_loss(out.iou_predictions.float()[there, 0], iou[there])
            results["iou"] = self.loss_weights.iou * error
            for level, name in enumerate(LEVELS):
                if (chosen := there & (asked == level)).any():
                    results[f"_{name}"] = iou[chosen].mean()
        if not there.all():
            # Where nothing is written nothing should be drawn, whatever the presence says: read-out may ask the mask.
            nothing = bce_loss(logits[~there], targets[~there], weights[~there])
            results["nothing"] = nothing.mean() * (~there).float().mean() * 4
        presence = F.binary_cross_entropy_with_logits(out.presence_logits.float(), there.float())
        results["presence"] = self.loss_weights.presence * presence
        results["_presence"] = ((out.presence_logits > 0) == there).float().mean()
        strokes = torch.nonzero((asked == STROKE) & there)[:, 0]
        if len(strokes) and self.model.config.fine_masks:
            if self.fixed_count:
                strokes = strokes.repeat(-(-len(samples) // len(strokes)))[: len(samples)]
            self._fine(image, samples, out.low_res_logits[strokes], index[strokes], results)

    def _draw(self, sample: TextSample, written: bool, generator: torch.Generator) -> list[int]:
        """Levels to ask of a picture: strokes and words always, where they are known."""
        known = [i for i, name in enumerate(LEVELS) if name in sample.levels]
        first = [i for i in known if LEVELS[i] in ("text stroke", "word")]
        rest = [i for i in known if i not in first]
        order = torch.randperm(len(rest), generator=generator).tolist()
        every = first + [rest[i] for i in order]
        if not written:
            return [known[i] for i in torch.randperm(len(known), generator=generator)[: self.queries].tolist()]
        return every[: self.queries]

    def _stress(self, asked: Tensor, targets: Tensor, words: Tensor) -> Tensor:
        """(N, h, w) in [0, 1]: the few cells that tell a level's instances apart, and a line from its words.

        Args:
            asked: (N,) levels. targets: (N, h, w). words: (N, h, w) the words of the same picture; ones where unknown.
        """
        split = torch.isin(asked, torch.tensor(SPLIT, device=asked.device))[:, None, None]
        line = (asked == LINE)[:, None, None]
        return torch.maximum(gaps(targets) * split, (targets - words).clamp(min=0) * line)

    def _embed(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        text = self.level_embeddings[levels]
        noise = torch.randn(text.shape, generator=generator).to(text.device) * self.noise * text.shape[-1] ** -0.5
        return F.normalize(text + noise, dim=-1)

    def _fine(
        self,
        image: ImageEmbeddings,
        samples: list[TextSample],
        low_res_logits: Tensor,
        index: Tensor,
        results: dict[str, Tensor],
    ) -> None:
        """Strokes at full resolution; low_res_logits: (N, 1, h, w) of the pictures `index`."""
        logits = self.model.refine_masks(image, low_res_logits, index)[:, 0].float()
        pictures = index.tolist()
        targets = torch.stack([samples[b].strokes for b in pictures])
        weights = torch.stack([samples[b].weights for b in pictures])
        weights = F.interpolate(weights[:, None], logits.shape[-2:], mode="nearest")[:, 0]
        # Hardly more weight on ink than on ground: what counts here is where exactly the edge between them runs.
        loss = 2 * bce_loss(logits, targets, balance(targets, weights, 1.3)) + dice_loss(logits, targets, weights)
        results["fine"] = 4 * loss.mean()
        results["_fine"] = mask_iou(logits, targets, weights).mean()

    def _mask_loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        w = self.loss_weights
        return w.dice * dice_loss(logits, targets, weights) + 2 * w.bce * bce_loss(
            logits, targets, balance(targets, weights, 4.0)
        )

    # -- maps and whole images ------------------------------------------------------------------------------------

    def _maps(
        self,
        image: ImageEmbeddings,
        samples: list[TextSample],
        levels: Tensor,
        known: Tensor,
        results: dict[str, Tensor],
    ) -> None:
        """The similarity map of every level: where the decoder's answer starts from.

        Args:
            levels: (B, 5, S/4, S/4) masks. known: (B, 5) bool.
        """
        logits = self.model.text_similarity(image, self.level_embeddings).float()  # type: ignore[union-attr]
        size = logits.shape[-2:]
        targets = F.adaptive_avg_pool2d(levels, size)
        weights = F.adaptive_avg_pool2d(torch.stack([sample.weights for sample in samples])[:, None], size)
        weights = weights.expand_as(logits)
        there = (targets.flatten(2).sum(2) > 0.2) & known
        weights = weights.clone()
        weights[:, SPLIT] *= 1 + GAP_WEIGHT * gaps(targets[:, SPLIT], GAP_CELLS // 2)
        pixel = bce_loss(logits, targets, balance(targets, weights, 4.0))
        results["similarity"] = 2 * (pixel * known).sum() / known.sum().clamp(min=1)
        if there.any():
            results["similarity"] = results["similarity"] + dice_loss(logits, targets, weights)[there].mean()
            results["_similarity"] = mask_iou(logits, targets, weights)[there].mean()

    def _whole_images(self, image: ImageEmbeddings, levels: Tensor, known: Tensor, results: dict[str, Tensor]) -> None:
        """Is there text in the picture at all, by the vector of the whole image; arguments as `_maps`."""
        logits = self.model.image_presence(image, self.level_embeddings)
        there = (levels.flatten(2).sum(2) > 0.5).float()
        each = F.binary_cross_entropy_with_logits(logits, there, reduction="none")
        results["image_presence"] = self.loss_weights.image_presence * (each * known).sum() / known.sum() / 2

    # -- words by box, click and transcript ----------------------------------------------------------------------

    def _words(
        self, image: ImageEmbeddings, samples: list[TextSample], generator: torch.Generator, results: dict[str, Tensor]
    ) -> None:
        """One word of each of two pictures, asked for by a box, a click or, where CLIP allows, what it says."""
        device = self.level_embeddings.device
        rows = [b for b, sample in enumerate(samples) if sample.boxes is not None and len(sample.boxes)]
        rows = rows[:: max(1, len(rows) // 2)][:2]
        if not rows:
            return
        targets = torch.stack([samples[b].masks[0] for b in rows])
        weights = torch.stack([samples[b].weights for b in rows])
        prompt: dict[str, Tensor]
        kind = float(torch.rand((), generator=generator))
        texts = [samples[b].texts[0] for b in rows]
        if self.transcripts is not None and kind > 0.6 and all(texts):
            prompt = {"text_embeddings": self.transcripts(texts).to(device)}
        elif kind < 0.5 if self.transcripts is None else kind < 0.3:
            boxes = torch.stack([samples[b].boxes[0] for b in rows])
            prompt = {"boxes": noisy_boxes(boxes, image.input_size[0], generator)}
        else:
            clicks = torch.stack([_point_in(mask, generator) for mask in targets.cpu()]).to(device)
            labels = torch.ones(len(rows), 1, dtype=torch.int64, device=device)
            prompt = {"point_coords": clicks[:, None], "point_labels": labels}
        index = torch.tensor(rows, device=device)
        prompts = self.model.encode_prompts(image, image_index=index, **prompt)
        out = self.model.decode_masks(image, prompts, multimask_output=False, image_index=index)
        logits = out.low_res_logits.float()[:, 0]
        results["words"] = self._mask_loss(logits, targets, weights).mean() / 2
        results["_words"] = mask_iou(logits, targets, weights).mean()


def gaps(targets: Tensor, cells: int = GAP_CELLS) -> Tensor:
    """Where neighbouring cores nearly touch: (..., h, w) in [0, 1]. What decides whether two words are told apart is a
    few cells, which drown in the loss of all others.

    Args:
        targets: (..., h, w) in [0, 1]. cells: the widest gap, odd.
    """
    wide = F.max_pool2d(targets, cells, 1, cells // 2)
    closed = -F.max_pool2d(-wide, cells, 1, cells // 2)
    return (closed - targets).clamp(min=0)


def _all_levels(samples: list[TextSample]) -> Tensor:
    """(B, 5, S/4, S/4) masks, empty where unknown."""
    nothing = torch.zeros_like(samples[0].weights)
    return torch.stack([torch.stack([sample.levels.get(name, nothing) for name in LEVELS]) for sample in samples])


def _point_in(mask: Tensor, generator: torch.Generator) -> Tensor:
    """xy px of a cell of a (h, w) mask at stride 4, drawn by its share."""
    cell = torch.multinomial(mask.flatten() + 1e-9, 1, generator=generator)[0]
    return torch.stack([cell % mask.shape[1], cell // mask.shape[1]]).float() * 4 + 2


def _renamed(name: str) -> str:
    """Losses of object batches under names of their own, so that the log keeps them apart."""
    return f"_objects{name}" if name.startswith("_") else f"objects_{name}"
