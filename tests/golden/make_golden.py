"""Makes original_sam.safetensors: a tiny random SAM by the original code, inputs, and what each stage makes of them.

Needs facebookresearch/segment-anything (dca509f) on the path, which no test does:

    git clone https://github.com/facebookresearch/segment-anything
    PYTHONPATH=segment-anything python tests/golden/make_golden.py

Weights are float16 in the file and were float16 when the outputs were computed (in float32), so nothing is lost.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

OUTPUT = Path(__file__).with_name("original_sam.safetensors")
# In the words of textsam.config.TextSamConfig. 8 x 8 tokens in windows of 3: windows at the edges are padded.
CONFIG = {
    "image_size": 64,
    "patch_size": 8,
    "encoder_width": 24,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 3,
    "mlp_ratio": 1.5,
    "prompt_dim": 32,
    "decoder_heads": 2,
    "decoder_mlp_dim": 24,
    "iou_head_hidden": 16,
    "mask_in_chans": 16,
}


def build_original() -> nn.Module:
    """The original's `Sam` of these sizes."""
    try:
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    except ImportError:
        sys.exit("segment_anything is not importable: clone the original and set PYTHONPATH, as the docstring says.")
    side, patch, dim = CONFIG["image_size"], CONFIG["patch_size"], CONFIG["prompt_dim"]
    grid = side // patch
    encoder = ImageEncoderViT(
        img_size=side,
        patch_size=patch,
        embed_dim=CONFIG["encoder_width"],
        depth=CONFIG["encoder_depth"],
        num_heads=CONFIG["encoder_heads"],
        mlp_ratio=CONFIG["mlp_ratio"],
        out_chans=dim,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=CONFIG["window_size"],
        global_attn_indexes=CONFIG["global_attn_indexes"],
    )
    prompt_encoder = PromptEncoder(dim, (grid, grid), (side, side), CONFIG["mask_in_chans"])
    transformer = TwoWayTransformer(2, dim, CONFIG["decoder_heads"], CONFIG["decoder_mlp_dim"])
    decoder = MaskDecoder(transformer_dim=dim, transformer=transformer, iou_head_hidden_dim=CONFIG["iou_head_hidden"])
    return Sam(encoder, prompt_encoder, decoder).eval()


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Every weight random and exact in float16; none at a value (0 or 1) that would hide a mistake."""
    for name, tensor in model.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "embed" not in name and "token" not in name else 1
        noise = torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
        is_norm = tensor.ndim == 1 and "weight" in name
        tensor.copy_((1 + 0.3 * noise if is_norm else noise).half().float())


def prompt_cases(generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Prompts by name: points of two objects, a box, a mask, and mixtures."""
    side = CONFIG["image_size"]
    points = (torch.rand(2, 3, 2, generator=generator) * side).round(decimals=1)
    labels = torch.tensor([[1, 0, 1], [1, -1, -1]])
    box = torch.tensor([[5.5, 12.0, 40.25, 60.0]])
    mask = torch.randn(1, 1, 32, 32, generator=generator).mul(4).half().float()
    return {
        "points": {"point_coords": points, "point_labels": labels},
        "box": {"boxes": box},
        "mask": {"mask_input": mask},
        "points_box": {"point_coords": points[:1], "point_labels": labels[:1], "boxes": box},
        "points_box_mask": {
            "point_coords": points[:1],
            "point_labels": labels[:1],
            "boxes": box,
            "mask_input": mask,
        },
    }


@torch.no_grad()
def main() -> None:
    generator = torch.Generator().manual_seed(20230405)
    torch.set_num_threads(1)
    model = build_original()
    randomize(model, generator)
    tensors = {f"weights/{name}": tensor.half() for name, tensor in model.state_dict().items() if "pixel" not in name}

    side = CONFIG["image_size"]
    pixels = torch.randint(-128, 128, (1, 3, side, side), generator=generator, dtype=torch.int8)
    embeddings = model.image_encoder(pixels / 64)
    tensors |= {"pixels_times_64": pixels, "image_embeddings": embeddings}
    tensors["image_pe"] = model.prompt_encoder.get_dense_pe()

    for case, prompts in prompt_cases(generator).items():
        points = (prompts["point_coords"], prompts["point_labels"]) if "point_coords" in prompts else None
        sparse, dense = model.prompt_encoder(points, prompts.get("boxes"), prompts.get("mask_input"))
        tensors |= {f"{case}/{name}": tensor for name, tensor in prompts.items()}
        tensors[f"{case}/sparse"] = sparse
        if "mask_input" in prompts:
            tensors[f"{case}/dense"] = dense
        for multimask in (True, False):
            masks, iou = model.mask_decoder(embeddings, tensors["image_pe"], sparse, dense, multimask)
            kind = "multi" if multimask else "single"
            tensors |= {f"{case}/{kind}_logits": masks, f"{case}/{kind}_iou": iou}

    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, OUTPUT, metadata={"config": json.dumps(CONFIG)})
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
