"""Who runs the step: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from textsam.labelling.shards import RunFolder
from textsam.labelling.step import Labeller, LabelSettings

Counts = tuple[int, int]  # good and bad pictures


def run_local(
    settings: LabelSettings, out: str, shards: Sequence[int], on_picture: Callable[[bool], None] = lambda good: None
) -> Iterator[Counts]:
    """One shard after the other, in this process."""
    labeller, folder = Labeller(settings), RunFolder(out)
    for shard in shards:
        yield labeller.label_shard(folder, shard, on_picture)
