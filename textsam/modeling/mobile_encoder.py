"""A small image encoder: MobileNetV2 with a light pyramid and a dense head for text.

Everything that SAM asks of an encoder is a C x h x w map. This one adds what a small model can use: maps at strides
4 and 8 for the mask decoder's upscaling, and per-position features that are compared with text.
Source: Sandler et al. 2018, *MobileNetV2* (the trunk); Lin et al. 2017, *Feature Pyramid Networks* (the pyramid);
Zhou et al. 2022, *MaskCLIP* (dense features compared with text embeddings).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textsam.modeling.layers import LayerNorm2d, MLPBlock, PointwiseConv2d
from textsam.modeling.native_layers import PackedMobile, PackedTrunk, packed

# (output channels, expansion, stride) of the 17 blocks.
MOBILENET_V2_BLOCKS = (
    [(16, 1, 1)]
    + [(24, 6, 2), (24, 6, 1)]
    + [(32, 6, 2), (32, 6, 1), (32, 6, 1)]
    + [(64, 6, 2), (64, 6, 1), (64, 6, 1), (64, 6, 1)]
    + [(96, 6, 1), (96, 6, 1), (96, 6, 1)]
    + [(160, 6, 2), (160, 6, 1), (160, 6, 1)]
    + [(320, 6, 1)]
)
# stride -> (block number, channels) of the maps that are taken off the trunk.
TAPS = {4: (3, 24), 8: (6, 32), 16: (13, 96), 32: (17, 320)}


def stride_of_blocks() -> dict[int, int]:
    """Of the blocks whose maps are taken off the trunk."""
    return {block: stride for stride, (block, _) in TAPS.items()}


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: a stride-2 3x3 layer pads 0 before and 1 after on even sizes."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project, with a shortcut where the shape is kept."""

    def __init__(self, in_chans: int, out_chans: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_chans * expansion
        self.expand = PointwiseConv2d(in_chans, hidden) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, 3, stride, groups=hidden)
        self.project = PointwiseConv2d(hidden, out_chans)
        self.shortcut = stride == 1 and in_chans == out_chans

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1.0, batch norm folded into the convolutions.

    Args:
        with_head: keep the last 1x1 convolution (320 -> 1280) that image classification uses.
    """

    def __init__(self, with_head: bool = False) -> None:
        super().__init__()
        self.conv0 = SameConv2d(3, 32, 3, 2)
        channels = 32
        for number, (out_chans, expansion, stride) in enumerate(MOBILENET_V2_BLOCKS, start=1):
            self.add_module(f"block{number:02d}", InvertedResidual(channels, out_chans, expansion, stride))
            channels = out_chans
        self.conv18 = nn.Conv2d(320, 1280, 1) if with_head else None

    def forward_features(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride.

        Args:
            pixel_values: (B, 3, H, W), RGB, x / 127.5 - 1.
        Returns:
            {4: (B, 24, H/4, W/4), 8: (B, 32, ...), 16: (B, 96, ...), 32: (B, 320, ...)}.
        """
        wanted = stride_of_blocks()
        natively = packed(self, PackedTrunk, pixel_values)
        if natively is not None:
            return natively(pixel_values, wanted)
        x = F.relu6(self.conv0(pixel_values))
        taps: dict[int, Tensor] = {}
        for number in range(1, len(MOBILENET_V2_BLOCKS) + 1):
            x = self.get_submodule(f"block{number:02d}")(x)
            if number in wanted:
                taps[wanted[number]] = x
        return taps

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The last map: (B, 1280, H/32, W/32) with the head, (B, 320, H/32, W/32) without."""
        x = self.forward_features(pixel_values)[32]
        return x if self.conv18 is None else F.relu6(self.conv18(x))


class SeparableConv(nn.Module):
    """Depthwise 3x3, LayerNorm, pointwise GELU MLP, residual (a ConvNeXt block with a small kernel)."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.mlp = MLPBlock(channels, channels * expansion)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        return x + self.mlp(y).permute(0, 3, 1, 2)


class ContextBlock(nn.Module):
    """A pre-norm transformer block over the coarsest map; a depthwise convolution tells positions apart."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = (x + self.position(x)).flatten(2).transpose(1, 2)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(tokens)).chunk(3, dim=-1)
        )
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(b, c, h, w)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of `x` to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class MobileFeatures(NamedTuple):
    """What `MobileEncoder` gives for B images."""

    embeddings: Tensor  # (B, C, H/16, W/16)
    high_res: tuple[Tensor, Tensor] | None  # strides 4 and 8
    similarity: Tensor | None  # (B, E, H/8, W/8), to compare with text
    presence: Tensor | None  # (B, E), to compare with text


class MobileEncoder(nn.Module):
    """MobileNetV2 trunk, light pyramid, optional head for text.

    Args:
        out_chans: C of the image embedding at stride 16.
        similarity_dim: E of the head at stride 8 whose features are compared with text; None leaves the head out.
        presence_dim: E of a vector of the whole image that is compared with text, too; None leaves it out.
        high_res_skips: also return maps at strides 4 (C/8 channels) and 8 (C/4 channels) for the mask decoder.
        context_depth: transformer blocks on the stride-32 map.
    """

    stride = 16

    def __init__(
        self,
        out_chans: int = 256,
        similarity_dim: int | None = None,
        presence_dim: int | None = None,
        high_res_skips: bool = True,
        context_depth: int = 2,
        context_dim: int = 256,
        pyramid_dim: int = 128,
    ) -> None:
        super().__init__()
        self.trunk = MobileNetV2()
        self.lateral32 = PointwiseConv2d(TAPS[32][1], context_dim)
        self.context = nn.Sequential(*(ContextBlock(context_dim, context_dim // 32) for _ in range(context_depth)))
        self.lateral16 = PointwiseConv2d(TAPS[16][1], context_dim)
        self.smooth16 = SeparableConv(context_dim)
        self.neck = nn.Sequential(PointwiseConv2d(context_dim, out_chans), LayerNorm2d(out_chans))
        self.high_res_skips = high_res_skips
        if similarity_dim is not None or high_res_skips:
            self.lateral8 = PointwiseConv2d(TAPS[8][1], pyramid_dim)
            self.down16 = PointwiseConv2d(context_dim, pyramid_dim)
            self.smooth8 = SeparableConv(pyramid_dim)
        if high_res_skips:
            self.skip8 = PointwiseConv2d(pyramid_dim, out_chans // 4)
            self.lateral4 = PointwiseConv2d(TAPS[4][1], out_chans // 4)
            self.down8 = PointwiseConv2d(pyramid_dim, out_chans // 4)
            self.smooth4 = SeparableConv(out_chans // 4)
            self.skip4 = PointwiseConv2d(out_chans // 4, out_chans // 8)
        self.similarity_head = None
        if similarity_dim is not None:
            self.similarity_head = nn.Sequential(
                SeparableConv(pyramid_dim), PointwiseConv2d(pyramid_dim, similarity_dim), LayerNorm2d(similarity_dim)
            )
        self.presence_head = None
        if presence_dim is not None:
            self.presence_head = nn.Sequential(
                nn.LayerNorm(2 * context_dim),
                nn.Linear(2 * context_dim, 2 * context_dim),
                nn.GELU(),
                nn.Linear(2 * context_dim, presence_dim),
                nn.LayerNorm(presence_dim),
            )
        # What the compiled kernels need.
        widths = (out_chans // 4, pyramid_dim, context_dim, similarity_dim or 1, presence_dim or 16)
        self.whole_vectors = high_res_skips and all(width % 16 == 0 for width in widths)

    def forward(self, pixel_values: Tensor) -> MobileFeatures:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of 16.
        Returns:
            `MobileFeatures`.
        """
        natively = packed(self, PackedMobile, pixel_values) if self.whole_vectors else None
        if natively is not None:
            embedding, skip4, skip8, compared, whole = natively(pixel_values, stride_of_blocks())
            return MobileFeatures(
                embedding, (skip4, skip8), compared, whole if self.presence_head is not None else None
            )
        taps = self.trunk.forward_features(pixel_values)
        p32 = self.context(self.lateral32(taps[32]))
        p16 = self.smooth16(self.lateral16(taps[16]) + upsample(p32, taps[16]))
        embeddings, presence = self.neck(p16), None
        if self.presence_head is not None:
            # The mean says what the picture is of, the maximum what else is somewhere in it.
            presence = self.presence_head(torch.cat([p32.mean((2, 3)), p32.amax((2, 3))], dim=1))
        if not self.high_res_skips and self.similarity_head is None:
            return MobileFeatures(embeddings, None, None, presence)
        p8 = self.smooth8(self.lateral8(taps[8]) + upsample(self.down16(p16), taps[8]))
        skips = None
        if self.high_res_skips:
            p4 = self.smooth4(self.lateral4(taps[4]) + upsample(self.down8(p8), taps[4]))
            skips = (self.skip4(p4), self.skip8(p8))
        similarity = None if self.similarity_head is None else self.similarity_head(p8)
        return MobileFeatures(embeddings, skips, similarity, presence)

    @torch.no_grad()
    def load_trunk(self, state_dict: dict[str, Tensor]) -> None:
        """Start the trunk from classification weights of the same names; the classifier's own layers are left out."""
        kept = {name: value for name, value in state_dict.items() if not name.startswith(("conv18.", "classifier."))}
        self.trunk.load_state_dict(kept, strict=True)
