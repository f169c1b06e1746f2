"""The names of the levels of written text, and the vectors by which the embedded text encoder knows them.

    python -m train.level_names --names vit_b_32_names.npz --out extra_names.safetensors

No table of CLIP embeddings that we have holds "text", "word" or "text line". Until one does, each level has a fixed
vector of its own: of unit length, as far from the mean of all known names as names are, at right angles to the other
levels and to the directions in which known names differ most. They are *not* CLIP's embeddings of these words.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.checkpoints.encoders import write_extra_names
from textsam.text_regions.levels import ALIASES, LEVELS
from train import command
from train.text_encoder import load_targets


def level_targets(names: Tensor) -> Tensor:
    """(K, D) embeddings of known names -> (5, D) vectors of the levels, of unit length; the same every time."""
    mean = names.mean(0)
    centred = names - mean
    main = torch.linalg.svd(centred, full_matrices=False).Vh[:64]
    drawn = torch.randn(len(LEVELS), names.shape[1], generator=torch.Generator().manual_seed(0))
    drawn = drawn - drawn @ main.T @ main
    directions = torch.linalg.qr(drawn.T).Q.T
    return F.normalize(mean + centred.norm(dim=1).mean() * directions, dim=-1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", required=True, type=command.file, help="npz with names, embeddings and source")
    parser.add_argument("--out", required=True, type=command.new_file, help="safetensors file")
    args = parser.parse_args(arguments)
    _, embeddings = load_targets(args.names)
    write_extra_names(args.out, LEVELS, level_targets(embeddings), ALIASES)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
