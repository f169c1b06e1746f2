"""What frozen networks say of the data, computed once and kept on disk: image embeddings, and CLIP's of crops."""

from __future__ import annotations

import os
from hashlib import blake2b, sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textsam.language.clip import CropEncoder
from textsam.prompting.encoded_image import DENSE_STRIDE
from textsam.prompting.transforms import ImageGeometry, features_in_input
from train.data import Sample

CROP_BATCH_SIZE = 16  # crops at a time, whatever the number of masks


class TensorStore:
    """Named tensors by key, those of a key in a safetensors file of its own, written whole or not at all.

    Args:
        folder: made if need be.
        network: that the tensors come from; its digest is kept beside the folder. None: nobody asks.
    Raises:
        ValueError: the folder belongs to another network.
    """

    def __init__(self, folder: Path, network: nn.Module | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if network is None:
            return
        digest, mark = _digest(network), folder.with_name(f"{folder.name}.network")
        if not mark.exists():
            part = mark.with_name(f"{mark.name}.part{os.getpid()}")
            part.write_text(digest)
            os.replace(part, mark)
        if mark.read_text() != digest:
            raise ValueError(
                f"{folder} holds embeddings of another network: remove {folder.parent}, or name another --out"
            )

    def _file(self, key: str) -> Path:
        return self.folder / f"{sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def read(self, key: str) -> dict[str, Tensor]:
        """What is known of a key; nothing when it is new, or when its file is damaged (it is made again)."""
        file = self._file(key)
        try:
            return load_file(file) if file.is_file() else {}
        except SafetensorError:
            return {}

    def add(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keeps more tensors of a key."""
        file = self._file(key)
        part = file.with_suffix(f".part{os.getpid()}")
        save_file({name: tensor.contiguous().cpu() for name, tensor in (self.read(key) | tensors).items()}, part)
        os.replace(part, file)


def _digest(network: nn.Module) -> str:
    """Tells weights from others, on any machine."""
    digest = blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CropPrompts:
    """The CLIP embedding of each instance's crop: the prompts of appendix D.5. Also what its tower sees of a picture.

    Args:
        encoder: its image tower. store: keeps embeddings; None: they are computed every time, as they must be when
            every crop is new (`SampleOptions.crop_seeds` None).
    """

    def __init__(self, encoder: CropEncoder, store: TensorStore | None = None) -> None:
        self.encoder, self.store = encoder, store

    @torch.no_grad()
    def embed(self, sample: Sample) -> Tensor:
        """(G, D) float32 of unit length, on the encoder's device."""
        known = self.store.read(sample.picture_key) if self.store and sample.picture_key else {}
        names = [key for _, key in sample.keys]
        missing = [i for i, name in enumerate(names) if name not in known]
        if missing and (sample.crops is None or sample.coverage is None):
            raise ValueError("the samples hold no crops: set crop_size of SampleOptions to the CLIP's image size")
        new = {}
        for start in range(0, len(missing), CROP_BATCH_SIZE):
            rows = missing[start : start + CROP_BATCH_SIZE]
            found = self.encoder.embed_crops(sample.crops[rows].numpy(), sample.coverage[rows])
            new |= {names[row]: embedding for row, embedding in zip(rows, found, strict=True)}
        if new and self.store and sample.picture_key:
            self.store.add(sample.picture_key, new)
        device = self.encoder.device
        embeddings = [(new[name] if name in new else known[name]).to(device) for name in names]
        return torch.stack(embeddings) if embeddings else torch.zeros(0, self.encoder.embed_dim, device=device)

    @torch.no_grad()
    def dense(self, sample: Sample) -> Tensor:
        """(D, h, w) float32 on the encoder's device: its features in the sample's frame, as a predictor takes them."""
        side = int(sample.pixels.shape[-1])
        valid = sample.valid_hw or (side, side)
        pixels = sample.pixels[:, : valid[0], : valid[1]].permute(1, 2, 0).contiguous().cpu().numpy()
        geometry = ImageGeometry(valid, valid, (side, side))
        return features_in_input(self.encoder.dense(pixels), geometry, DENSE_STRIDE)[0]
