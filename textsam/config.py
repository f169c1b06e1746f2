"""The sizes of a network. `textsam.model.TextSamConfig` has the same and is a configuration of transformers, whose
import alone takes longer than to load the embedded model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config", bound="NetworkConfig")


class NetworkConfig:
    """Sizes of a TextSAM network. The defaults are SAM ViT-B with the CLIP of the paper's appendix D.5.

    Args:
        encoder_type: "vit" (ViTDet, SAM's own) or "mobile" (MobileNetV2 with a light pyramid).
        image_size: input side S in px; other sides work too, this is the default.
        patch_size: px of the input per position of the image embedding.
        encoder_width, encoder_depth, encoder_heads, global_attn_indexes, window_size, mlp_ratio: the ViT.
        prompt_dim: C, the width of the image embedding, the tokens and the decoder.
        decoder_depth, decoder_heads, decoder_mlp_dim, decoder_downsample_rate: the two-way transformer.
        num_multimask_outputs: masks for an ambiguous prompt.
        iou_head_depth, iou_head_hidden, mask_in_chans: as in SAM.
        clip_name, clip_pretrained: open_clip's name and tag of the CLIP whose embeddings are the text prompt; a
            frozen public CLIP is only referred to.
        clip_dim: D of that CLIP.
        clip_template: the frame of a name, "a {}" when training saw the embeddings of "a dog".
        text_projection: "linear" or "mlp", D to C.
        similarity_head: dense features that are compared with the text ("mobile" only).
        image_presence: a vector of the whole image that is compared with the text, too ("mobile" only).
        similarity_dim: E, the width of both.
        high_res_skips: maps at strides 4 and 8 into the decoder's upscaling ("mobile" only).
        dense_geometry: prompts also drawn as maps; see `GeometryMaps`.
        mask_refinement: masks are drawn after a second look at stride 4; needs dense_geometry.
        fine_masks: masks can be redrawn at the input's full resolution, for the strokes of letters; needs
            `high_res_skips`. See `FineMasks`.
        finish_masks: fine masks are drawn a last time from several views of the picture; needs fine_masks.
        mask_detail: masks are redrawn near by, on the photo's own pixels; needs `high_res_skips`. See `MaskDetail`.
        dense_text: where CLIP's own image tower sees a text is a mask prompt, too; for encoders without a
            `similarity_head`. See `DenseText`.
        text_regions: of a model that finds written text: its levels, tile and rule of shrinking, as
            `textsam.text_regions.levels.TextRegionConfig` has them; None for any other.
        text_trained: False when the text parameters are still random, as after loading SAM's own checkpoints.
        pixel_mean, pixel_std: of RGB in 0..255.
    """

    def __init__(
        self,
        encoder_type: str = "vit",
        image_size: int = 1024,
        patch_size: int = 16,
        encoder_width: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        global_attn_indexes: tuple[int, ...] | list[int] = (2, 5, 8, 11),
        window_size: int = 14,
        mlp_ratio: float = 4.0,
        prompt_dim: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        decoder_downsample_rate: int = 2,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden: int = 256,
        mask_in_chans: int = 16,
        clip_name: str = "ViT-L-14-336",
        clip_pretrained: str = "openai",
        clip_dim: int = 768,
        clip_template: str = "{}",
        text_projection: str = "linear",
        similarity_head: bool = False,
        image_presence: bool = False,
        similarity_dim: int = 128,
        high_res_skips: bool = False,
        dense_geometry: bool = False,
        mask_refinement: bool = False,
        fine_masks: bool = False,
        finish_masks: bool = False,
        mask_detail: bool = False,
        dense_text: bool = False,
        text_regions: dict[str, Any] | None = None,
        text_trained: bool = False,
        pixel_mean: tuple[float, ...] | list[float] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] | list[float] = (58.395, 57.12, 57.375),
    ) -> None:
        if encoder_type not in ("vit", "mobile"):
            raise ValueError(f'encoder_type must be "vit" or "mobile", but is {encoder_type!r}.')
        if text_projection not in ("linear", "mlp"):
            raise ValueError(f'text_projection must be "linear" or "mlp", but is {text_projection!r}.')
        mobile_only = {
            "similarity_head": similarity_head,
            "image_presence": image_presence,
            "high_res_skips": high_res_skips,
        }
        if encoder_type == "vit" and (asked := [name for name, value in mobile_only.items() if value]):
            raise ValueError(f'{" and ".join(asked)} need encoder_type="mobile"; the ViT lacks them.')
        if fine_masks and not high_res_skips:
            raise ValueError("fine_masks needs high_res_skips=True: it starts from the map at stride 4.")
        if mask_detail and not high_res_skips:
            raise ValueError("mask_detail needs high_res_skips=True: it looks at the crops' maps at strides 4 and 8.")
        if dense_text and similarity_head:
            raise ValueError("dense_text and similarity_head both say where a text is: choose one of them.")
        if finish_masks and not fine_masks:
            raise ValueError("finish_masks needs fine_masks=True: it goes on from their drawing.")
        if mask_refinement and not dense_geometry:
            raise ValueError("mask_refinement needs dense_geometry=True: it looks at the prompts as they are drawn.")
        self.encoder_type = encoder_type
        self.image_size = image_size
        self.patch_size = patch_size
        self.encoder_width = encoder_width
        self.encoder_depth = encoder_depth
        self.encoder_heads = encoder_heads
        self.global_attn_indexes = list(global_attn_indexes)
        self.window_size = window_size
        self.mlp_ratio = mlp_ratio
        self.prompt_dim = prompt_dim
        self.decoder_depth = decoder_depth
        self.decoder_heads = decoder_heads
        self.decoder_mlp_dim = decoder_mlp_dim
        self.decoder_downsample_rate = decoder_downsample_rate
        self.num_multimask_outputs = num_multimask_outputs
        self.iou_head_depth = iou_head_depth
        self.iou_head_hidden = iou_head_hidden
        self.mask_in_chans = mask_in_chans
        self.clip_name = clip_name
        self.clip_pretrained = clip_pretrained
        self.clip_dim = clip_dim
        self.clip_template = clip_template
        self.text_projection = text_projection
        self.similarity_head = similarity_head
        self.image_presence = image_presence
        self.similarity_dim = similarity_dim
        self.high_res_skips = high_res_skips
        self.dense_geometry = dense_geometry
        self.mask_refinement = mask_refinement
        self.fine_masks = fine_masks
        self.finish_masks = finish_masks
        self.mask_detail = mask_detail
        self.dense_text = dense_text
        self.text_regions = text_regions
        self.text_trained = text_trained
        self.pixel_mean = list(pixel_mean)
        self.pixel_std = list(pixel_std)

    @classmethod
    def fields(cls) -> list[str]:
        """The names of the sizes."""
        return list(inspect.signature(NetworkConfig.__init__).parameters)[1:]

    @classmethod
    def of(cls: type[Config], other: NetworkConfig) -> Config:
        """The same sizes as `other`'s."""
        return cls(**{name: getattr(other, name) for name in cls.fields()})

    @classmethod
    def of_dict(cls: type[Config], content: Mapping[str, Any]) -> Config:
        """The sizes that a `config.json` has; whatever else it has is left out."""
        return cls(**{name: content[name] for name in cls.fields() if name in content})

    @classmethod
    def sam_vit_b(cls: type[Config], **kwargs: Any) -> Config:
        """SAM ViT-B: width 768, 12 blocks, 12 heads."""
        return cls(**kwargs)

    @classmethod
    def sam_vit_l(cls: type[Config], **kwargs: Any) -> Config:
        """SAM ViT-L: width 1024, 24 blocks, 16 heads."""
        sizes: dict[str, Any] = {"encoder_width": 1024, "encoder_depth": 24, "encoder_heads": 16}
        return cls(**{**sizes, "global_attn_indexes": (5, 11, 17, 23), **kwargs})

    @classmethod
    def sam_vit_h(cls: type[Config], **kwargs: Any) -> Config:
        """SAM ViT-H: width 1280, 32 blocks, 16 heads."""
        sizes: dict[str, Any] = {"encoder_width": 1280, "encoder_depth": 32, "encoder_heads": 16}
        return cls(**{**sizes, "global_attn_indexes": (7, 15, 23, 31), **kwargs})

    @classmethod
    def tiny(cls: type[Config], **kwargs: Any) -> Config:
        """`textsam-tiny`, the embedded model: MobileNetV2, CLIP ViT-B/32 space, prompts also drawn as maps."""
        sizes: dict[str, Any] = {
            "encoder_type": "mobile",
            "image_size": 384,
            "prompt_dim": 128,
            "decoder_mlp_dim": 512,
            "decoder_downsample_rate": 1,
            "iou_head_hidden": 128,
            "clip_name": "ViT-B-32",
            "clip_dim": 512,
            "clip_template": "a {}",
            "similarity_head": True,
            "image_presence": True,
            "high_res_skips": True,
            "dense_geometry": True,
            "pixel_mean": (127.5, 127.5, 127.5),
            "pixel_std": (127.5, 127.5, 127.5),
        }
        return cls(**{**sizes, **kwargs})
