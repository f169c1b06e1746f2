"""The small encoders of words and of crops that travel with the embedded model, both into CLIP ViT-B/32's space.

They have the methods of the open_clip encoders in `textsam.language.clip`. The text encoder was fitted to the
embeddings of the names in its vocabulary and refuses others; the crop encoder is an ImageNet MobileNetV2 with a head
that was fitted to the embeddings of the names of cropped objects (`train/text_encoder.py`, `train/crop_encoder.py`).
"""

from __future__ import annotations

import functools
import inspect
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.language.crops import masked_mean, square_crop, validate_image_and_masks
from textsam.language.vocabulary import UnknownNameError, Vocabulary, normalize, validate_texts
from textsam.modeling.layers import MLPBlock
from textsam.modeling.mobile_encoder import MobileNetV2

CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE = "config.json", "model.safetensors", "vocabulary.json"
MAX_WORDS = 12
BATCH_SIZE = 16


@functools.lru_cache(maxsize=65536)
def word_features(word: str, num_buckets: int) -> tuple[int, ...]:
    """Buckets of a word and of its 3- to 5-grams, with "<" and ">" at its ends (as fastText does)."""
    marked = f"<{word}>"
    grams = {marked, *(marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1))}
    return tuple(zlib.crc32(gram.encode()) % num_buckets for gram in sorted(grams))


class SmallTextEncoder(nn.Module):
    """Words -> CLIP embeddings: hashed character n-grams for each word, one transformer block over the words.

    Args:
        vocabulary: the names that `encode` serves.
        num_buckets: rows of the n-gram table.
        width: size of a word's vector.
        embed_dim: D.
        num_extra: the last so many names have fixed vectors of their own, `extra`; see `with_names`.
    Source: Bojanowski et al. 2017, *Enriching Word Vectors with Subword Information* (the n-grams).
    """

    extra: Tensor  # (num_extra, D)

    def __init__(
        self,
        vocabulary: Vocabulary,
        num_buckets: int = 2048,
        width: int = 256,
        num_heads: int = 4,
        mlp_dim: int = 256,
        embed_dim: int = 512,
        num_extra: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.sizes = {
            "num_buckets": num_buckets,
            "width": width,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "embed_dim": embed_dim,
        }
        if num_extra:
            self.sizes["num_extra"] = num_extra
            self.register_buffer("extra", torch.zeros(num_extra, embed_dim))
        self.num_buckets, self.num_heads, self.embed_dim, self.num_extra = num_buckets, num_heads, embed_dim, num_extra
        self.ngrams = nn.EmbeddingBag(num_buckets, width, mode="mean")
        # Positions count from the last word, where an English name has its noun.
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, mlp_dim)
        self.final_norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, embed_dim)

    @property
    def device(self) -> torch.device:
        return self.text_projection.weight.device

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as they are written, known or not: (Q, D), L2-normalised."""
        if not texts:
            return torch.zeros(0, self.embed_dim, device=self.device)
        words = [normalize(text).split()[-MAX_WORDS:][::-1] or [""] for text in texts]
        features = [word_features(word, self.num_buckets) for text in words for word in text]
        offsets = np.cumsum([0] + [len(feature) for feature in features])[:-1]
        flat = torch.tensor([bucket for feature in features for bucket in feature], device=self.device)
        vectors = self.ngrams(flat, torch.as_tensor(offsets, device=self.device))
        lengths = torch.tensor([len(text) for text in words], device=self.device)
        valid = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]  # (Q, W)
        x = vectors.new_zeros(*valid.shape, vectors.shape[-1])
        x[valid] = vectors
        return self.embed_words(x, valid)

    def embed_words(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """(Q, W, width) vectors of words, the last word first, and (Q, W) bool, which there are -> (Q, D)."""
        x = vectors + self.positions[: vectors.shape[1]]
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        x = self.final_norm(x + self.mlp(self.norm2(x)))
        pooled = (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts that ask for known names.

        Args:
            texts: Q texts, such as "dog", "a photo of two dogs" or "the small dog".
        Returns:
            (Q, D) float32, L2-normalised; (0, D) for no text.
        Raises:
            TypeError, ValueError: not a list of sensible strings.
            UnknownNameError: a text names nothing in the vocabulary; the message lists close names.
        """
        extra = self.vocabulary.names[len(self.vocabulary) - self.num_extra :]
        try:
            names = [self.vocabulary.find(text) for text in validate_texts(texts)]
        except UnknownNameError as error:
            raise UnknownNameError(error.text, error.suggestions, several=error.several, own=extra) from None
        embeddings = self(names)
        for row, name in enumerate(names):
            if name in extra:
                embeddings[row] = F.normalize(self.extra[extra.index(name)].float(), dim=-1)
        return embeddings

    def with_names(self, names: Sequence[str], embeddings: Tensor, aliases: Mapping[str, str]) -> SmallTextEncoder:
        """A copy that knows further names, which CLIP's tables lack, by vectors that are looked up.

        Args:
            embeddings: (E, D) of unit length. aliases: other spelling -> one of the names.
        """
        if self.num_extra or embeddings.shape != (len(names), self.embed_dim):
            raise ValueError(
                f"names are added once, with a ({len(names)}, {self.embed_dim}) tensor, not {tuple(embeddings.shape)}"
            )
        vocabulary = Vocabulary([*self.vocabulary.names, *names], {**self.vocabulary.aliases, **aliases})
        wider = SmallTextEncoder(vocabulary, **self.sizes, num_extra=len(names))
        wider.load_state_dict({**self.state_dict(), "extra": embeddings})
        return wider.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write sizes, vocabulary and weights (in `dtype`) to a folder."""
        _save(self, folder, self.sizes, dtype)
        self.vocabulary.save(Path(folder) / VOCABULARY_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SmallTextEncoder:
        """Read what `save_pretrained` wrote, in float32 and eval mode; missing or foreign weights are an error."""
        model = cls(Vocabulary.load(_existing(folder, VOCABULARY_FILE)), **_read_config(cls, folder))
        return _load(model, folder)


class SmallCropEncoder(nn.Module):
    """Crops of masks -> CLIP space: MobileNetV2, mean over the mask, linear head.

    Args:
        embed_dim: D.
        image_size: side of the square crop in pixels.
    """

    pixel_mean = 127.5  # of all three colours; x / 127.5 - 1 is the trunk's input

    def __init__(self, embed_dim: int = 512, image_size: int = 224) -> None:
        super().__init__()
        self.sizes = {"embed_dim": embed_dim, "image_size": image_size}
        self.embed_dim, self.image_size = embed_dim, image_size
        # Channels last: 1.6x as fast on a CPU.
        self.trunk = MobileNetV2(with_head=True).to(memory_format=torch.channels_last)
        self.visual_projection = nn.Linear(1280, embed_dim)

    @property
    def device(self) -> torch.device:
        return self.visual_projection.weight.device

    def pooled_features(self, crops: Tensor, coverage: Tensor) -> Tensor:
        """Trunk features averaged over the mask.

        Args:
            crops: (N, S, S, 3) uint8 RGB.
            coverage: (N, S, S) in [0, 1].
        Returns:
            (N, 1280).
        """
        pixel_values = crops.permute(0, 3, 1, 2).to(self.visual_projection.weight.dtype) / self.pixel_mean - 1
        return masked_mean(self.trunk(pixel_values), coverage)

    def forward(self, crops: Tensor, coverage: Tensor) -> Tensor:
        """(N, S, S, 3) uint8 crops and their (N, S, S) coverage -> (N, D), L2-normalised."""
        return F.normalize(self.visual_projection(self.pooled_features(crops, coverage)).float(), dim=-1)

    @torch.no_grad()
    def encode(
        self, image: np.ndarray, masks: np.ndarray, *, expand: float = 1.25, zero_outside: bool = False
    ) -> Tensor:
        """Embed what is inside each mask.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool, none empty.
            expand: side of the square crop relative to the mask's box, 1 to 2.
            zero_outside: grey out the pixels outside the mask.
        Returns:
            (N, D) float32, L2-normalised; (0, D) for no mask.
        """
        image, masks = validate_image_and_masks(image, masks)
        embeddings = [torch.zeros(0, self.embed_dim, device=self.device)]
        for start in range(0, len(masks), BATCH_SIZE):
            pairs = [
                square_crop(
                    image, mask, self.image_size, expand=expand, zero_outside=zero_outside, fill=(self.pixel_mean,) * 3
                )
                for mask in masks[start : start + BATCH_SIZE]
            ]
            crops, coverage = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*pairs, strict=True))
            embeddings.append(self(crops, coverage))
        return torch.cat(embeddings)

    @torch.no_grad()
    def dense(self, image: np.ndarray) -> Tensor:
        """Every position of the trunk's map through the head, on the picture at twice the crop's side.

        Args:
            image: (H, W, 3) uint8 RGB.
        Returns:
            (D, hc, wc), L2-normalised over D; one position per 32 px of the resized picture.
        """
        image, _ = validate_image_and_masks(image, np.zeros((0, *image.shape[:2]), bool))
        scale = 2 * self.image_size / max(image.shape[:2])
        width, height = (max(32, 32 * round(side * scale / 32)) for side in (image.shape[1], image.shape[0]))
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixel_values = torch.tensor(resized, device=self.device).permute(2, 0, 1)[None].float() / self.pixel_mean - 1
        features = self.trunk(pixel_values)[0]
        return F.normalize(self.visual_projection(features.permute(1, 2, 0)), dim=-1).permute(2, 0, 1)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write sizes and weights (in `dtype`) to a folder."""
        _save(self, folder, self.sizes, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SmallCropEncoder:
        """Read what `save_pretrained` wrote, in float32 and eval mode; missing or foreign weights are an error."""
        return _load(cls(**_read_config(cls, folder)), folder)


def _save(model: nn.Module, folder: str | Path, sizes: dict[str, int], dtype: torch.dtype) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    state = {name: value.detach().cpu().to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it to the owner alone, and packages keep that


def _existing(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a folder written by save_pretrained")
    return path


def _read_config(kind: type[nn.Module], folder: str | Path) -> dict[str, Any]:
    path = _existing(folder, CONFIG_FILE)
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(sizes, dict) or not all(type(value) is int and value > 0 for value in sizes.values()):
        raise ValueError(f'{path} must hold whole numbers by name, such as {{"embed_dim": 512}}')
    known = set(inspect.signature(kind).parameters) - {"vocabulary"}
    if set(sizes) - known:
        raise ValueError(f"{path} holds {sorted(set(sizes) - known)}; {kind.__name__} has only {sorted(known)}")
    return sizes


def _load(model: Any, folder: str | Path) -> Any:
    path = _existing(folder, WEIGHTS_FILE)
    state = {name: value.float() for name, value in load_file(path).items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model.eval().requires_grad_(False)
