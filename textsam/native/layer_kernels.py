"""The compiled library's layers of the small models, on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from textsam.native.calls import integers, pointer, pointers


class LayerKernels:
    """Layers that take one picture (h, w, C), float32, contiguous and on the CPU, and fill `out`, its place in a batch;
    see layers.cpp and convolutions.cpp."""

    _library: ctypes.CDLL

    def trunk(
        self, pixels: Tensor, sizes: Sequence[Sequence[int]], weights: Sequence[Tensor], outs: Sequence[Tensor | None]
    ) -> None:
        """MobileNetV2; see layers.cpp.

        Args:
            pixels: (3, H, W). sizes: of each layer its channels before, widened and after, its stride and whether it
                has a shortcut; of the first one, which comes with the layer before it, 27, ..., 1, 0.
            weights: six of each layer: panels and bias that widen, of the depthwise product (9, wide) and (wide,),
                padded to panels, panels and bias that narrow.
            outs: of each layer the map (h, w, channels) that it is to fill, or None.
        """
        _, height, width = pixels.shape
        places, h, w = list[int | None](), height, width
        for number, ((_, _, narrow, stride, _), out) in enumerate(zip(sizes, outs, strict=True)):
            step = stride if number else 2
            h, w = -(-h // step), -(-w // step)
            places.append(None if out is None else pointer(out, h, w, narrow).value)
        self._library.textsam_trunk(
            *integers(height, width, len(sizes)),
            (ctypes.c_int64 * (5 * len(sizes)))(*(each for layer in sizes for each in layer)),
            pointers(weights),
            pointer(pixels, 3, height, width),
            (ctypes.c_void_p * len(places))(*places),
            *integers(torch.get_num_threads()),
        )

    def pyramid(
        self,
        taps: Sequence[Tensor],
        inner: tuple[int, int, int, int],
        blocks: int,
        epsilons: tuple[float, float],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        whole: Tensor | None,
    ) -> None:
        """The small encoder behind its trunk; see pyramid.cpp.

        Args:
            taps: the trunk's maps at strides 4, 8, 16 and 32.
            inner: channels of the pyramid at strides 4, 8 and 16, and heads of its transformer blocks.
            blocks: how many of these. epsilons: of their norms and of all others.
            weights: in the order of their use; panels and biases of products, (9, C) and (C,) of depthwise ones.
            outs: (h, w, channels) at strides 16, 4, 8 and 8: the embedding, two finer maps, what is compared with text.
            whole: (E,), the same of the whole picture, or None.
        """
        sizes = [each.shape[:2] for each in taps]
        places = [
            pointer(out, *sizes[level], out.shape[2]).value for out, level in zip(outs, (2, 0, 1, 1), strict=True)
        ]
        self._library.textsam_pyramid(
            (ctypes.c_int64 * 8)(*(side for size in sizes for side in size)),
            (ctypes.c_int64 * 4)(*(each.shape[2] for each in taps)),
            (ctypes.c_int64 * 9)(*inner, *(each.shape[2] for each in outs), 0 if whole is None else len(whole)),
            *integers(blocks),
            (ctypes.c_float * 2)(*epsilons),
            (ctypes.c_void_p * 4)(*(pointer(each, *each.shape).value for each in taps)),
            pointers(weights),
            (ctypes.c_void_p * 5)(*places, None if whole is None else pointer(whole, len(whole)).value),
            *integers(torch.get_num_threads()),
        )

    def convolve(
        self, x: Tensor, weights: tuple[Tensor, Tensor], other: Tensor | None, gelu: bool, out: Tensor
    ) -> None:
        """A 3 x 3 convolution, with zeros around, of (h, w, C) to (h, w, channels); see convolutions.cpp.

        Args:
            weights: panels and biases of (channels, 9 * C), place by place; see `panels`.
            other: (h, w, channels), added to it. gelu: of the sum.
        """
        (h, w, wide), channels = x.shape, out.shape[2]
        self._library.textsam_convolve(
            *integers(h, w, wide, channels, gelu),
            pointer(x, h, w, wide),
            *(pointer(each, *each.shape) for each in weights),
            None if other is None else pointer(other, h, w, channels),
            pointer(out, h, w, channels),
            *integers(torch.get_num_threads()),
        )

    def unet(
        self,
        x: Tensor,
        features: Sequence[Tensor],
        weights: Sequence[Tensor],
        channels: Sequence[int],
        seen: Sequence[int],
        groups: int,
        epsilon: float,
        out: Tensor,
    ) -> None:
        """The U-Net of `MaskDetail`; see convolutions.cpp.

        Args:
            x: (h, w, C). features: (h / 2, w / 2, ...), (h / 4, w / 4, ...) and so on.
            weights: in the order of their use, 3 x 3 products place by place.
            channels: of each level. seen: that the features are narrowed to. out: (h, w, n).
        """
        (h, w, n), levels = out.shape, len(channels)
        known = [each.shape[2] for each in features]
        beside = [pointer(each, h >> i, w >> i, k) for i, (each, k) in enumerate(zip(features, known, strict=True), 1)]
        self._library.textsam_unet(
            *integers(h, w, x.shape[2], n, levels),
            *((ctypes.c_int64 * len(each))(*each) for each in (channels, known, seen)),
            *integers(groups),
            ctypes.c_float(epsilon),
            pointer(x, h, w, x.shape[2]),
            (ctypes.c_void_p * len(beside))(*(each.value for each in beside)),
            pointers(weights),
            pointer(out, h, w, n),
            *integers(torch.get_num_threads()),
        )

    def surroundings(self, x: Tensor, weights: Sequence[Tensor], levels: int, gelu: bool, out: Tensor) -> None:
        """(h, w, C) with what lies around each place; h and w are multiples of 2^levels; see convolutions.cpp.

        Args:
            weights: of each level panels and biases down, of the mixture and up. gelu: of the sum.
        """
        h, w, channels = x.shape
        self._library.textsam_surroundings(
            *integers(h, w, channels, levels, gelu),
            pointer(x, h, w, channels),
            pointers(weights),
            pointer(out, h, w, channels),
            *integers(torch.get_num_threads()),
        )

    def refine(
        self, x: Tensor, maps: Tensor, weights: Sequence[Tensor], channels: int, levels: int, out: Tensor
    ) -> None:
        """A second look at a map (h, w, C) and what is drawn beside it (h, w, F): (h, w, C); see convolutions.cpp.

        Args:
            weights: panels and biases in the order of their use, those of the surroundings as in `surroundings`.
            channels: between the two.
        """
        h, w, wide = x.shape
        self._library.textsam_refine(
            *integers(h, w, wide, maps.shape[2], channels, levels),
            pointer(x, h, w, wide),
            pointer(maps, h, w, maps.shape[2]),
            pointers(weights),
            pointer(out, h, w, wide),
            *integers(torch.get_num_threads()),
        )

    def drawing(
        self, maps: Tensor, weights: Sequence[Tensor], widths: tuple[int, int], epsilon: float, outs: Sequence[Tensor]
    ) -> None:
        """Drawn prompts (4h, 4w, F), embedded at strides 4, 8 and 16; see layers.cpp.

        Args:
            weights: panels and biases in the order of their use, those of a norm behind those of the layer before it.
            widths: between the layers, at strides 8 and 16. outs: (4h, 4w, ...), (2h, 2w, ...) and (h, w, ...).
        """
        channels, (h, w, _) = maps.shape[2], outs[2].shape
        places = [
            pointer(out, scale * h, scale * w, out.shape[2]).value for out, scale in zip(outs, (4, 2, 1), strict=True)
        ]
        self._library.textsam_drawing(
            *integers(h, w, channels, *widths),
            (ctypes.c_int64 * 3)(*(each.shape[2] for each in outs)),
            ctypes.c_float(epsilon),
            pointer(maps, 4 * h, 4 * w, channels),
            pointers(weights),
            (ctypes.c_void_p * 3)(*places),
            *integers(torch.get_num_threads()),
        )

    def up(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        others: Sequence[Tensor],
        norm: tuple[Tensor, Tensor, float] | None,
        out: Tensor,
    ) -> None:
        """(h, w, C) to (2h, 2w, channels), by a transposed convolution of 2 x 2, and GELU; see layers.cpp.

        Args:
            weights: panels and biases of (4 * channels, C), place by place; see `panels`.
            others: at most two (2h, 2w, channels), added to it.
            norm: weight, bias and epsilon of a layer norm, or None.
        """
        (h, w, wide), channels = x.shape, out.shape[2]
        self._library.textsam_up(
            *integers(h, w, wide, channels),
            pointer(x, h, w, wide),
            *(pointer(each, *each.shape) for each in weights),
            *(pointer(each, *out.shape) for each in others),
            *[None] * (2 - len(others)),
            *((None, None) if norm is None else (pointer(each, channels) for each in norm[:2])),
            ctypes.c_float(0 if norm is None else norm[2]),
            pointer(out, 2 * h, 2 * w, channels),
            *integers(torch.get_num_threads()),
        )

    @property
    def panel(self) -> int:
        """Columns of a panel of weights, and what widths are padded to between the layers of a block."""
        return int(self._library.textsam_panel())

    def panels(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(out, in) weights to (panels, in, panel) and their (out,) bias to (panels * panel,), with zeros behind."""
        padded = functional.pad(weight.detach().float(), (0, 0, 0, -len(weight) % self.panel))
        cut = padded.unflatten(0, (-1, self.panel)).transpose(1, 2).contiguous()
        return cut, functional.pad(bias.detach().float(), (0, -len(bias) % self.panel))
