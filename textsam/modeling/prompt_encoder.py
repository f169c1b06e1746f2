"""Prompts to embeddings: points, boxes and words become tokens, masks become a map.

Source: Kirillov et al. 2023, *Segment Anything*, section 3, appendix A (points, boxes, masks) and D.5 (text).
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import LayerNorm2d, PointwiseConv2d, is_cpu_inference
from textsam.modeling.native_layers import PackedDrawing, packed
from textsam.modeling.structures import DrawnPrompts, PromptEmbeddings

_MOST_GRIDS = 8  # that are kept: a photo's, those of crops, and a few more
# Of each layer the matrix as it was and the encodings of grids (h, w); beside the layers, as what `packed` keeps.
_kept: WeakKeyDictionary[nn.Module, tuple[Tensor, dict[tuple[int, int], Tensor]]] = WeakKeyDictionary()


class PositionEmbeddingRandom(nn.Module):
    """Coordinates to C numbers through fixed random frequencies (Tancik et al. 2020, *Fourier Features*)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int = 128, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", scale * torch.randn(2, num_pos_feats))

    def encode(self, coords_norm: Tensor) -> Tensor:
        """(..., 2) xy in [0, 1] -> (..., C).

        Computed in float32 whatever the dtype: the angle is a sum of products up to 2 pi times a Gaussian, and eight
        bits of it are not a position. The angle is rounded once, at the end.
        """
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * coords_norm.float() - 1) @ matrix.float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix.dtype)

    def forward(self, grid_hw: tuple[int, int]) -> Tensor:
        """The encoding of the centres of an h x w grid: (C, h, w). Without gradients on a CPU the last ones are kept:
        sines of a whole grid take as long as a tenth of a click."""
        matrix = self.positional_encoding_gaussian_matrix
        if not is_cpu_inference(matrix):
            return self._encode_grid(grid_hw)
        seen, grids = _kept.get(self, (None, {}))
        if seen is None or seen.dtype != matrix.dtype or not torch.equal(seen, matrix):
            seen, grids = _kept[self] = matrix.clone(), {}
        grid = grids.get(grid_hw)
        if grid is None:
            if len(grids) >= _MOST_GRIDS:
                grids.clear()
            grid = grids[grid_hw] = self._encode_grid(grid_hw).contiguous()
        return grid

    def _encode_grid(self, grid_hw: tuple[int, int]) -> Tensor:
        h, w = grid_hw
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return self.encode(grid).permute(2, 0, 1)

    def encode_pixels(self, coords_px: Tensor, input_size: tuple[int, int]) -> Tensor:
        """(..., 2) xy in px of an input of (height, width) `input_size` -> (..., C)."""
        height, width = input_size
        scale = coords_px.new_tensor([1 / width, 1 / height], dtype=torch.float32)
        return self.encode(coords_px * scale)


class GeometryMaps(nn.Module):
    """Draws prompts at stride 4 and embeds the drawing at strides 16, 8 and 4: a dense form of the sparse prompts.

    Learning from sparse tokens alone where in the image a token points to takes SAM millions of masks. A small model
    trained on thousands is told: clicks are discs, a box is a filled rectangle, a text is the map of its similarity
    to the image, a former mask is itself. The coarse map joins the dense prompt embedding, the fine ones join the
    decoder's upscaling, where a box's edge is needed. Not in the original; off for SAM's own checkpoints.
    """

    channels = 5  # foreground clicks, background clicks, box, similarity, former mask

    def __init__(self, embed_dim: int, hidden: int = 16, click_sigma_px: float = 6.0) -> None:
        super().__init__()
        self.click_sigma_px = click_sigma_px
        self.stride4 = PointwiseConv2d(self.channels, embed_dim // 8)
        self.to_stride8 = nn.Sequential(nn.Conv2d(self.channels, 2 * hidden, 2, 2), LayerNorm2d(2 * hidden), nn.GELU())
        self.stride8 = PointwiseConv2d(2 * hidden, embed_dim // 4)
        self.to_stride16 = nn.Sequential(
            nn.Conv2d(2 * hidden, 4 * hidden, 2, 2),
            LayerNorm2d(4 * hidden),
            nn.GELU(),
            PointwiseConv2d(4 * hidden, embed_dim),
        )

    def forward(
        self,
        count: int,
        input_size: tuple[int, int],
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None,
        similarity: Tensor | None,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, DrawnPrompts]:
        """Arguments as `PromptEncoder.forward`. Returns (N, C, h, w) for the dense prompt, and the rest."""
        weight = self.stride4.weight
        height, width = input_size[0] // 4, input_size[1] // 4
        y = (torch.arange(height, device=weight.device, dtype=torch.float32) + 0.5) * 4
        x = (torch.arange(width, device=weight.device, dtype=torch.float32) + 0.5) * 4
        maps = torch.zeros(count, height, width, self.channels, device=weight.device).permute(0, 3, 1, 2)
        if point_coords is not None and point_labels is not None:
            near_x = torch.exp(-((x - point_coords[..., :1].float()) ** 2) / (2 * self.click_sigma_px**2))
            near_y = torch.exp(-((y - point_coords[..., 1:].float()) ** 2) / (2 * self.click_sigma_px**2))
            discs = near_y[..., :, None] * near_x[..., None, :]  # (N, K, height, width)
            for channel, label in ((0, 1), (1, 0)):
                chosen = (point_labels == label)[..., None, None]
                maps[:, channel] = (discs * chosen).amax(dim=1)
        if boxes is not None:
            # Soft by one cell, so that a box edge inside a cell is not rounded away.
            x1, y1, x2, y2 = (boxes.float()[:, i, None] for i in range(4))
            inside_x = ((x - x1) / 4 + 0.5).clamp(0, 1) * ((x2 - x) / 4 + 0.5).clamp(0, 1)
            inside_y = ((y - y1) / 4 + 0.5).clamp(0, 1) * ((y2 - y) / 4 + 0.5).clamp(0, 1)
            maps[:, 2] = inside_y[:, :, None] * inside_x[:, None, :]
        if similarity is not None:
            resized = F.interpolate(similarity.float(), (height, width), mode="bilinear", align_corners=False)
            maps[:, 3] = torch.tanh(resized[:, 0] / 4)
        if mask_input is not None:
            maps[:, 4] = torch.tanh(mask_input.float()[:, 0] / 4)
        maps = maps.to(weight.dtype)
        stride4, stride8, dense = self._embed(maps)
        return dense, DrawnPrompts(maps, stride4, stride8)

    def _embed(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 5, 4h, 4w) -> at strides 4, 8 and 16: (N, C/8, 4h, 4w), (N, C/4, 2h, 2w) and (N, C, h, w)."""
        natively = packed(self, PackedDrawing, maps)
        if natively is not None:
            return natively(maps)
        middle = self.to_stride8(maps)
        return self.stride4(maps), self.stride8(middle), self.to_stride16(middle)


class PromptEncoder(nn.Module):
    """Points, boxes, masks and text to sparse tokens and a dense map.

    Args:
        embed_dim: C, width of a token.
        mask_in_chans: hidden channels of the mask branch.
        clip_dim: D, width of the CLIP embeddings that come as text.
        text_projection: "linear" or "mlp". The paper leaves open how D becomes C.
        dense_geometry: also draw the prompts as maps (`GeometryMaps`); False in SAM.
    """

    modality_means: Tensor

    def __init__(
        self,
        embed_dim: int = 256,
        mask_in_chans: int = 16,
        clip_dim: int = 768,
        text_projection: str = "linear",
        dense_geometry: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        # Background point, foreground point, top-left corner, bottom-right corner: the original's order.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, 2, 2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, 2, 2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.text_projection: nn.Module = nn.Linear(clip_dim, embed_dim)
        if text_projection == "mlp":
            self.text_projection = nn.Sequential(
                nn.Linear(clip_dim, 2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, embed_dim)
            )
        self.text_embed = nn.Embedding(1, embed_dim)
        # Row 0: the mean text embedding, row 1: the mean image embedding. CLIP's two modalities sit in two separate
        # cones; subtracting each one's mean brings a crop and its name together. Zeros leave embeddings as they are.
        self.register_buffer("modality_means", torch.zeros(2, clip_dim))
        self.geometry_maps = GeometryMaps(embed_dim) if dense_geometry else None

    def align_clip(self, embeddings: Tensor, modality: str = "text") -> Tensor:
        """CLIP embeddings (N, D) with their modality's mean taken off, of unit length again.

        Args:
            modality: "text" or "image", the tower that the embeddings come from.
        """
        mean = self.modality_means[0 if modality == "text" else 1]
        return F.normalize(embeddings.float() - mean.float(), dim=-1)

    def embed_points(
        self, point_coords: Tensor, point_labels: Tensor, input_size: tuple[int, int], pad: bool
    ) -> Tensor:
        """(N, K, 2) xy px and (N, K) labels -> (N, K, C), or (N, K + 1, C) with the padding token that SAM adds when
        points come without a box. Label 1 foreground, 0 background, -1 padding."""
        coords = point_coords + 0.5
        if pad:
            coords = F.pad(coords, (0, 0, 0, 1))
            point_labels = F.pad(point_labels, (0, 1), value=-1)
        tokens = self.pe_layer.encode_pixels(coords, input_size)
        label = point_labels[..., None]
        tokens = torch.where(label == -1, self.not_a_point_embed.weight.to(tokens.dtype), tokens)
        background, foreground, _, _ = self._point_weights()
        return tokens + background * (label == 0) + foreground * (label == 1)

    def embed_boxes(self, boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
        """(N, 4) xyxy px -> (N, 2, C), one token for each of two corners."""
        corners = self.pe_layer.encode_pixels(boxes.reshape(-1, 2, 2) + 0.5, input_size)
        _, _, top_left, bottom_right = self._point_weights()
        return corners + torch.cat([top_left, bottom_right])

    def _point_weights(self) -> list[Tensor]:
        """Four (1, C), in the order of `point_embeddings`."""
        return [embedding.weight for embedding in self.point_embeddings]  # type: ignore[misc]

    def embed_text(self, aligned: Tensor) -> Tensor:
        """(N, D) from `align_clip` -> (N, 1, C).

        A linear map and a learned type embedding, as for points. The paper does not state either.
        """
        weight = self.text_embed.weight
        return self.text_projection(aligned.to(weight.dtype))[:, None] + weight

    def forward(
        self,
        input_size: tuple[int, int],
        *,
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        text_embeddings: Tensor | None = None,
        similarity: Tensor | None = None,
        presence_logits: Tensor | None = None,
        count: int,
        grid_hw: tuple[int, int],
    ) -> PromptEmbeddings:
        """
        Args:
            input_size: (height, width) of the encoder's input, px; the frame of points and boxes.
            point_coords: (N, K, 2) xy px. point_labels: (N, K).
            boxes: (N, 4) xyxy px.
            mask_input: (N, 1, 4h, 4w) logits.
            text_embeddings: (N, D) from `align_clip`.
            similarity: (N, 1, hc, wc) logits of the text against the image; drawn when `dense_geometry` is on.
            presence_logits: (N,) of the text against the whole image; passed on to the decoder.
            count: N, needed when no prompt is given. grid_hw: (h, w) of the image embedding.
        Returns:
            Tokens in the order points, box, text (SAM's own order first); the dense map is (1, C, h, w) when it is
            the same for all prompts.
        """
        weight = self.no_mask_embed.weight
        tokens = []
        if point_coords is not None and point_labels is not None:
            tokens.append(self.embed_points(point_coords, point_labels, input_size, pad=boxes is None))
        if boxes is not None:
            tokens.append(self.embed_boxes(boxes, input_size))
        if text_embeddings is not None:
            tokens.append(self.embed_text(text_embeddings))
        sparse = torch.cat(tokens, dim=1) if tokens else weight.new_zeros(count, 0, self.embed_dim)

        if mask_input is not None:
            dense = self.mask_downscaling(mask_input.to(weight.dtype))
        else:
            dense = weight.reshape(1, -1, 1, 1).expand(1, -1, *grid_hw)
        drawn_prompts = None
        if self.geometry_maps is not None:
            drawn, drawn_prompts = self.geometry_maps(
                count, input_size, point_coords, point_labels, boxes, similarity, mask_input
            )
            dense = dense + drawn
        return PromptEmbeddings(sparse, dense, text_embeddings is not None, drawn_prompts, presence_logits)
