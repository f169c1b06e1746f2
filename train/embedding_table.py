"""CLIP embeddings that training asks with, and names that a picture does not show."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

SAME_THING = 0.65  # cosine of two centred names over which both are right: "sofa", "couch"; not "bear", "teddy bear"
SYNONYM = 0.38  # cosine of two centred names over which one may be said of the other's pictures ("cat", "animal")


def crop_key(set_name: str, annotation_id: int | str) -> tuple[str, int | str]:
    """By what a crop is known: "12" and 12 are the same annotation."""
    return set_name, int(annotation_id) if str(annotation_id).isdecimal() else str(annotation_id)


@dataclass
class EmbeddingTable:
    """CLIP embeddings for training: of names, and of crops (D.5), made beforehand."""

    names: Tensor  # (K, D)
    crops: dict[tuple[str, int | str], Tensor] = field(default_factory=dict)  # (set, annotation id) -> (V, D) variants
    distractors: Tensor | None = None  # (R,) rows of names that a picture seldom holds without being annotated for it
    mean: Tensor | None = None  # (D,) of all names; what tells names apart is the rest

    def draw_distractors(self, present: list[int], count: int, generator: torch.Generator) -> Tensor:
        """Names to take as absent from a picture that shows `present`: near them rather than far, but no synonyms."""
        if self.distractors is None or self.mean is None or not count:
            return torch.zeros(0, dtype=torch.int64)
        nearest = self._nearness[:, present].amax(1) if present else torch.zeros(len(self.distractors))
        chance = torch.where(nearest < SYNONYM, (nearest * 8).exp(), 0.0)
        return self.distractors[torch.multinomial(chance, count, generator=generator)]

    def other_things(self, absent: Tensor, present: list[int]) -> Tensor:
        """Of the names taken as absent, those that are no other word for one that is present."""
        if self.mean is None or not present or not len(absent):
            return absent
        return absent[(self._centred[absent] @ self._centred[present].T).amax(1) < SAME_THING]

    @cached_property
    def _centred(self) -> Tensor:
        return F.normalize(self.names - self.mean, dim=-1)

    @cached_property
    def _nearness(self) -> Tensor:
        """(R, K) cosine of each distractor and each name, both centred."""
        return self._centred[self.distractors] @ self._centred.T
