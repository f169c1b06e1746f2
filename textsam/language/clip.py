"""Public CLIPs, through open_clip: words and crops of masks to embeddings of the same space.

Any of open_clip's models by name and pretrained tag ("ViT-L-14-336:openai"), a Hub id ("hf-hub:org/model") or a folder
("local-dir:path"). The text and the crop encoder of one CLIP share its weights in memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.language.clip_towers import wrap_tower
from textsam.language.crops import inside_cells, square_crop, validate_image_and_masks
from textsam.language.vocabulary import validate_texts

SCHEMAS = ("hf-hub:", "local-dir:")
TEXT_BATCH_SIZE = 256
CROP_BATCH_SIZE = 16  # crops at a time, whatever N: bounds memory

_loaded: WeakValueDictionary[tuple[str, torch.device], nn.Module] = WeakValueDictionary()


class ClipNotAvailableError(OSError):
    """A CLIP whose weights can neither be found on this machine nor downloaded."""


def parse_clip_name(name: str, pretrained: str | None = None) -> tuple[str, str | None]:
    """Split "ViT-B-32:openai" into model and pretrained tag.

    Args:
        name: "MODEL:TAG", "MODEL:FILE", "hf-hub:org/model", "local-dir:folder", or "MODEL" with `pretrained`.
        pretrained: the tag or a file of weights, if `name` does not have it.
    Returns:
        (model, tag); the tag is None for the Hub and for folders.
    Raises:
        TypeError: not a string.
        ValueError: a model or a tag that open_clip does not know, naming those it knows.
    """
    import open_clip

    if not isinstance(name, str):
        raise TypeError(f'the name of a CLIP must be a string such as "ViT-B-32:openai", not {type(name).__name__}')
    if name.startswith(SCHEMAS):
        schema, _, identifier = name.partition(":")
        if not identifier or (schema == "hf-hub" and identifier.count("/") != 1):
            raise ValueError(f'{name!r} is not "hf-hub:org/model" or "local-dir:folder"')
        return name, None
    model, _, tag = name.partition(":")
    model, tag = model.strip().replace("/", "-"), tag or pretrained or ""
    known = open_clip.list_models()
    if model not in known:
        close = difflib.get_close_matches(model, known, n=5, cutoff=0.4) or ["ViT-B-32", "ViT-L-14-336"]
        raise ValueError(f"open_clip has no model {model!r}; close names: {', '.join(close)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags and open_clip.get_pretrained_cfg(model, tag) == {} and not Path(tag or ".").is_file():
        asked = f"no pretrained weights {tag!r}" if tag else "to be told which pretrained weights to use"
        raise ValueError(f'{model} has {asked}; write "{model}:TAG" with one of: {", ".join(tags) or "a file"}')
    return model, tag


def load_open_clip(
    name: str, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The CLIP model, with its real weights, and its tokenizer; what is in use on this device is not loaded twice.

    All users share the model, so do not move it: ask for another device.

    Raises:
        ValueError: an unknown name (see `parse_clip_name`).
        ClipNotAvailableError: the weights are not here and cannot be downloaded.
    """
    import open_clip

    model_name, tag = parse_clip_name(name, pretrained)
    full_name = model_name if tag is None else f"{model_name}:{tag}"
    device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
    try:
        model = _loaded.get((full_name, device))
        if model is None or next(model.parameters()).device != device:
            # open_clip 3 only warns when the activation differs from the one that a tag was trained with.
            quick_gelu = tag is not None and open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu", False)
            # `require_pretrained`: without it a Hub model whose weights are missing would be left random.
            model = open_clip.create_model(
                model_name, pretrained=tag, force_quick_gelu=bool(quick_gelu), require_pretrained=True
            )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # errors of urllib, httpx, the Hub and files share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClipNotAvailableError(
            f"CLIP {full_name!r} is neither in this machine's cache nor could it be downloaded ({reason}). Connect to "
            'the network once, or give weights that you have: "MODEL:/path/to/weights" or "local-dir:/path/to/folder".'
        ) from error
    _loaded[full_name, device] = model.to(device)
    return model, tokenizer


class TextEncoder(nn.Module):
    """Words -> embeddings, by the text tower of a public CLIP.

    Args:
        model: an open_clip model (`CLIP`, `CustomTextCLIP`, `CoCa`).
        tokenizer: its tokenizer, list of str -> (Q, context) token ids.
        template: frame around every text, with {} for it; "{}" embeds texts as they are. The embedded model was
            trained on names in the frame "a {}".
    """

    def __init__(self, model: Any, tokenizer: Callable[..., Tensor], template: str = "{}") -> None:
        super().__init__()
        if "{}" not in template:
            raise ValueError(
                f"template must hold {{}} where the text goes, such as 'a photo of a {{}}', not {template!r}"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.template = template
        with torch.no_grad():
            self.embed_dim = int(model.encode_text(tokenizer(["a"]).to(self.device)).shape[-1])

    @classmethod
    def from_pretrained(
        cls, name: str, pretrained: str | None = None, *, template: str = "{}", device: str | torch.device = "cpu"
    ) -> TextEncoder:
        """Load by name, such as "ViT-B-32:openai" (see `load_open_clip` for the errors)."""
        return cls(*load_open_clip(name, pretrained, device), template=template)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: Q texts; CLIP reads the first 77 tokens.
        Returns:
            (Q, D) float32, L2-normalised; (0, D) for no text.
        Raises:
            TypeError, ValueError: not a list of sensible strings.
        """
        framed = [self.template.replace("{}", text) for text in validate_texts(texts)]
        embeddings = [torch.zeros(0, self.embed_dim, device=self.device)]
        for start in range(0, len(framed), TEXT_BATCH_SIZE):
            tokens = self.tokenizer(framed[start : start + TEXT_BATCH_SIZE]).to(self.device)
            embeddings.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1))
        return torch.cat(embeddings)


class CropEncoder(nn.Module):
    """Crops of masks -> embeddings, by the image tower of a public CLIP.

    Args:
        model: an open_clip model (`CLIP`, `CustomTextCLIP`, `CoCa`).
    Source: Kirillov et al. 2023, appendix D.5. `textsam.language.clip_towers` says what each kind of tower does with
    the mask.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tower = wrap_tower(model.visual)
        size = model.visual.image_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) > 1:
            raise ValueError(
                f"crops are square, and this CLIP's image tower takes {tuple(size)} pixels: choose another CLIP"
            )
        self.image_size = int(sides.pop())
        # open_clip keeps the normalisation of the pretrained weights on the tower.
        settings = getattr(model.visual, "preprocess_cfg", {})
        self.register_buffer("pixel_mean", torch.tensor(settings.get("mean", (0.48145466, 0.4578275, 0.40821073))))
        self.register_buffer("pixel_std", torch.tensor(settings.get("std", (0.26862954, 0.26130258, 0.27577711))))
        with torch.no_grad():
            pixels = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device, dtype=self.dtype)
            inside = torch.ones(1, *self.tower.grid_hw, dtype=torch.bool, device=self.device)
            self.embed_dim = int(self.tower.embed_inside(pixels, inside).shape[-1])

    @classmethod
    def from_pretrained(
        cls, name: str, pretrained: str | None = None, *, device: str | torch.device = "cpu"
    ) -> CropEncoder:
        """Load by name, such as "ViT-B-32:openai" (see `load_open_clip` for the errors)."""
        return cls(load_open_clip(name, pretrained, device)[0]).to(device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.visual.parameters()).dtype

    @torch.no_grad()
    def encode(
        self, image: np.ndarray, masks: np.ndarray, *, expand: float = 1.25, zero_outside: bool = False
    ) -> Tensor:
        """Embed what is inside each mask.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool, none empty.
            expand: side of the square crop relative to the mask's box, 1 to 2.
            zero_outside: zero the tower's input outside the mask.
        Returns:
            (N, D) float32, L2-normalised; (0, D) for no mask.
        """
        image, masks = validate_image_and_masks(image, masks)
        fill = (self.pixel_mean * 255).tolist()
        embeddings = [torch.zeros(0, self.embed_dim, device=self.device)]
        for start in range(0, len(masks), CROP_BATCH_SIZE):
            pairs = [
                square_crop(image, mask, self.image_size, expand=expand, zero_outside=zero_outside, fill=fill)
                for mask in masks[start : start + CROP_BATCH_SIZE]
            ]
            crops, coverage = (np.stack(part) for part in zip(*pairs, strict=True))
            embeddings.append(self.embed_crops(crops, torch.from_numpy(coverage)))
        return torch.cat(embeddings)

    @torch.no_grad()
    def embed_crops(self, crops: np.ndarray, coverage: Tensor) -> Tensor:
        """Embed crops that `square_crop` cut, all at once.

        Args:
            crops: (N, S, S, 3) uint8 RGB, S = `image_size`. coverage: (N, S, S), the masks in them.
        Returns:
            (N, D) float32, L2-normalised.
        """
        inside = inside_cells(coverage, self.tower.grid_hw).to(self.device)
        return F.normalize(self.tower.embed_inside(self._normalise(crops), inside).float(), dim=-1)

    @torch.no_grad()
    def dense(self, image: np.ndarray) -> Tensor:
        """One embedding for each cell of the tower's grid; the picture is resized to the tower's square input.

        Args:
            image: (H, W, 3) uint8 RGB.
        Returns:
            (D, hc, wc) float32, L2-normalised over D; the grid covers the whole picture.
        """
        image, _ = validate_image_and_masks(image, np.zeros((0, *np.shape(image)[:2]), bool))
        side = (self.image_size, self.image_size)
        resized = np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BICUBIC))
        return F.normalize(self.tower.embed_cells(self._normalise(resized[None]))[0].float(), dim=0)

    def _normalise(self, crops: np.ndarray) -> Tensor:
        """(N, S, S, 3) uint8 -> (N, 3, S, S), the tower's input."""
        pixels = torch.from_numpy(crops.copy()).to(self.device).float() / 255
        return ((pixels - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2).to(self.dtype)
