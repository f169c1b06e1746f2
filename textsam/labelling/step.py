"""The one step of labelling: a shard of references in, a shard of results on disk. Every engine runs this step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsam.files.export import image_record
from textsam.files.runs import PICTURE_ERRORS, weights_identity
from textsam.labelling.shards import RunFolder
from textsam.labelling.sources import PictureReader, Reference
from textsam.language.queries import QueryList

if TYPE_CHECKING:
    import supervision as sv

    from textsam.files.images import RgbImage


@dataclass(frozen=True)
class LabelSettings:
    """What determines the results, and what a worker needs to begin; plain values, so that they travel.

    Attributes:
        model, clip, adapter, device, dtype: as `textsam.load`.
        classes: the lines of the class list; see `textsam.language.queries`.
        threshold, max_instances: as `textsam.queries.find_queries`.
        slice: side in px of the slices that are asked, too; see `textsam.slicing`. None: the whole picture alone.
        cache: folder of embeddings; None: none. It does not change the results.
    """

    classes: tuple[str, ...]
    model: str | None = None
    clip: str | None = None
    adapter: str | None = None
    device: str | None = None
    dtype: str | None = None
    threshold: float | None = None
    max_instances: int | None = None
    slice: int | None = None
    cache: str | None = None

    def identity(self) -> dict[str, Any]:
        """What must not change between runs into one folder."""
        values = {name: value for name, value in asdict(self).items() if name not in ("device", "cache")}
        if self.slice is None:  # as before there was this choice
            del values["slice"]
        return {**values, "weights": weights_identity(self.model, self.adapter)}


class Labeller:
    """A loaded model that labels shards.

    Raises:
        As `textsam.load`; ValueError: the classes are wrong, hold a word that the model does not know, or levels of
            written text beside what does not go with them.
    """

    def __init__(self, settings: LabelSettings) -> None:
        from textsam.checkpoints.loading import load
        from textsam.slicing import refuse_levels

        self.settings = settings
        self.queries = QueryList.parse(settings.classes)
        self.sam = load(
            settings.model,
            clip=settings.clip,
            adapter=settings.adapter,
            device=settings.device,
            dtype=settings.dtype,
        )
        if settings.cache is not None:
            self.sam.use_cache(Path(settings.cache))
        if self.sam.text_reader is not None:  # what cannot be read is told now, and not once for each picture
            self.sam.text_reader.levels_asked(self.queries.texts, self.queries.negative_texts)
        if settings.slice is not None:
            refuse_levels(self.sam, self.queries.texts)
        if self.sam.text_encoder is not None:
            self.sam.text_encoder.encode([*self.queries.texts, *self.queries.negative_texts])
        self.reader = PictureReader()

    def label_shard(
        self, folder: RunFolder, shard: int, on_picture: Callable[[bool], None] = lambda good: None
    ) -> tuple[int, int]:
        """Label the pictures of a shard and write it; where it is there, those that could not be labelled before.

        Args:
            on_picture: told after each picture whether it could be labelled.
        Returns:
            numbers of good and of bad pictures among those labelled now.
        """
        written = folder.read_shard(shard) if folder.shard_path(shard).is_file() else []
        good = {row["key"]: row for row in written if row["error"] is None}
        if written and len(good) == len(written):  # by a worker whose answer was lost
            return len(good), 0
        rows, bad = [], 0
        for reference in folder.references(shard):
            row = good.get(reference.key) or self.label(reference)
            rows.append(row)
            if reference.key not in good:
                bad += row["error"] is not None
                on_picture(row["error"] is None)
        folder.write_shard(shard, rows)
        return len(rows) - len(good) - bad, bad

    def label(self, reference: Reference) -> dict[str, Any]:
        """One picture as a row of `result_schema`; an error of the picture is part of the row."""
        row: dict[str, Any] = {**vars(reference), "width": None, "height": None, "annotations": [], "error": None}
        try:
            image = self.reader.read(reference)
            found = self.find(image)
            record = image_record(reference.key, image, found)
        except PICTURE_ERRORS as error:
            return {**row, "error": " ".join(str(error).split()) or type(error).__name__}
        return {**row, "width": record.width, "height": record.height, "annotations": record.objects}

    def find(self, image: RgbImage) -> sv.Detections:
        """The classes in a picture."""
        from textsam.queries import find_queries
        from textsam.slicing import find_in_slices

        settings = self.settings

        def ask(part: RgbImage) -> sv.Detections:
            return find_queries(
                self.sam, part, self.queries, max_instances=settings.max_instances, threshold=settings.threshold
            )

        return (
            ask(image) if settings.slice is None else find_in_slices(ask, image, settings.slice, settings.max_instances)
        )
