"""Records to training samples, for models of any size: large-scale jitter, mirroring, masks that are too small or too
large dropped, square crops of the masks for CLIP.

A sample is a function of (seed, position), where positions count through all epochs: a run can be repeated, and
continued in the middle of an epoch. Streams are skipped to the position without decoding anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from textsam.language.crops import square_crop
from train.data import MAX_MASK_SHARE, Sample, View, jitter_colour, shrink
from train.readers import RecordSource
from train.records import Record

CROP_FILL = (122.77, 116.75, 104.09)  # OpenAI CLIP's mean colour; zero in its normalised input
SHUFFLE_BUFFER = 256  # records of a stream held, still encoded, to be drawn from


@dataclass(frozen=True)
class SampleOptions:
    """
    Args:
        size: S, side of the model's input, px.
        instances: masks of a picture, at most; the paper has 64.
        min_side_px: masks of a smaller area than the square of this, in px of a 1024 input and scaled with `size`, are
            dropped (100 in D.5, 0 keeps all).
        scale_range: of the large-scale jitter, which is off when None; D.5: 0.1 to 2.
        mirror_share: of samples that are mirrored. colour: brightness, contrast and saturation vary.
        views: fixed views of each picture, so that the embeddings of a frozen encoder can be kept; None: a new one
            every time.
        crop_size: side of the crops for CLIP, px; None: no crops. crop_seeds: different crops of each mask, so that
            their embeddings can be kept; None: a new one every time.
        crop_expand: side of the square relative to the mask's box. zero_share: of crops without what is outside.
        seed: of all of it.
    """

    size: int = 1024
    instances: int = 64
    min_side_px: float = 0.0
    scale_range: tuple[float, float] | None = None
    mirror_share: float = 0.0
    colour: bool = False
    views: int | None = None
    crop_size: int | None = None
    crop_seeds: int | None = None
    crop_expand: tuple[float, float] = (1.0, 2.0)
    zero_share: float = 0.5
    seed: int = 0


def make_sample(record: Record, position: int, options: SampleOptions) -> Sample:
    """The sample of a record at a position of the run.

    Raises:
        OSError, ValueError: the picture cannot be read, or is not of the size of its masks.
    """
    size = options.size
    rng = np.random.default_rng((options.seed, position))
    seed = int(rng.integers(2**62))
    picture_key, view_rng = f"{record.set_name}/{record.id}", rng
    if options.views is not None:
        number = int(rng.integers(options.views))
        view_rng = _keyed_rng(options.seed, picture_key, number)
    pixels = record.read()
    view = View.draw(
        view_rng,
        record.height,
        record.width,
        size,
        options.scale_range or (1.0, 1.0),
        whole_share=0.0 if options.scale_range else 1.0,
        mirror_share=options.mirror_share,
    )
    image = Image.fromarray(pixels)
    seen = view.apply_image(jitter_colour(image, view_rng) if options.colour else image)

    masks, boxes, clicks, labels, keys, crops = [], [], [], [], [], []
    smallest = max(1.0, (options.min_side_px * size / 1024) ** 2)
    largest = MAX_MASK_SHARE * math.prod(view.valid_hw)
    for index in rng.permutation(len(record.regions)):
        if len(masks) == options.instances:
            break
        region = record.regions[index]
        mask = region.mask()
        inside = view.apply_mask(mask, size) > 0.5
        if not smallest <= np.count_nonzero(inside) <= largest:
            continue
        ys, xs = np.nonzero(inside)
        pick = rng.integers(len(ys))
        masks.append(shrink(inside))
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        clicks.append([float(xs[pick]), float(ys[pick])])
        labels.append(record.names[index])
        keys.append((record.set_name, str(region.id)))
        if options.crop_size is not None:
            number = position if options.crop_seeds is None else int(rng.integers(options.crop_seeds))
            crop_rng = _keyed_rng(options.seed, f"{picture_key}/{region.id}", number)
            crop, inside = square_crop(
                pixels,
                mask,
                options.crop_size,
                expand=float(crop_rng.uniform(*options.crop_expand)),
                zero_outside=bool(crop_rng.random() < options.zero_share),
                fill=CROP_FILL,
            )
            crops.append((crop, inside))
            if options.crop_seeds is not None:
                keys[-1] = (record.set_name, _content_key(crop, inside))
    side = size // 4
    known = 1 - view.apply_mask(record.ignore_mask(), side)
    return Sample(
        pixels=torch.from_numpy(seen).permute(2, 0, 1),
        masks=torch.from_numpy(np.stack(masks) if masks else np.zeros((0, side, side), np.float32)),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        clicks=torch.tensor(clicks, dtype=torch.float32).reshape(-1, 2),
        names=torch.full((len(masks),), -1),
        keys=keys,
        weights=torch.from_numpy((known > 0.5).astype(np.float32)),
        valid_hw=view.valid_hw,
        labels=labels,
        crops=torch.from_numpy(np.stack([crop for crop, _ in crops])) if crops else None,
        coverage=torch.from_numpy(np.stack([inside for _, inside in crops])) if crops else None,
        picture_key=picture_key,
        view_key="" if options.views is None else _content_key(seen, np.array(view.valid_hw)),
        seed=seed,
    )


class RecordSamples(Dataset):
    """Samples by position, of sources that have an index; every picture comes once an epoch, in an order of its own.

    A picture that turns out to be bad when it is read is counted, and the next one takes its place.
    """

    def __init__(self, sources: Sequence[RecordSource], options: SampleOptions) -> None:
        self.sources, self.options = list(sources), options
        self.ends = np.cumsum([len(source.rows) for source in self.sources])
        if not self.ends[-1]:
            raise ValueError("there is no picture in the data")
        self._order: tuple[int, np.ndarray] | None = None  # of the last epoch asked for

    def __len__(self) -> int:
        return 2**62  # positions count through all epochs

    def __getitem__(self, position: int) -> Sample:
        count = int(self.ends[-1])
        for shift in range(count):
            index = self._shuffled(position // count)[(position + shift) % count]
            number = int(np.searchsorted(self.ends, index, side="right"))
            source, row = self.sources[number], int(index - (self.ends[number - 1] if number else 0))
            sample = read_sample(source, source.rows[row], row, position, self.options)
            if sample is not None:
                return sample
        raise ValueError(f"none of the {count} pictures of {', '.join(s.name for s in self.sources)} can be used")

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.options.seed, epoch)).permutation(int(self.ends[-1]))
            self._order = (epoch, order)
        return self._order[1]


class StreamSamples(IterableDataset):
    """Samples of one stream, shuffled in a buffer, without an end; each process reads its own shards.

    Args:
        start: samples of each process that are skipped, as a run that goes on needs it.
        rank, world: of this process.
    """

    def __init__(
        self, source: RecordSource, options: SampleOptions, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.source, self.options = source, options
        self.start, self.rank, self.world = start, rank, world

    def at(self, start: int, rank: int, world: int) -> StreamSamples:
        """The same stream for a process, from a position on."""
        return StreamSamples(self.source, self.options, start=start, rank=rank, world=world)

    def __iter__(self) -> Iterator[Sample]:
        """
        Raises:
            ValueError: an epoch without a usable picture, or too many bad ones.
        """
        position = epoch = 0  # of this process
        while True:
            rows = self.source.rows.shuffle(seed=self.options.seed + epoch, buffer_size=SHUFFLE_BUFFER)
            began, good = position, False
            for number, row in enumerate(split_dataset_by_node(rows, self.rank, self.world)):
                if position >= self.start:
                    place = position * self.world + self.rank
                    sample = read_sample(self.source, row, number, place, self.options)
                    good = good or sample is not None
                    # A bad picture leaves an empty place: those after it keep theirs, so a run can be continued.
                    yield sample or empty_sample(self.options.size)
                position += 1
            if position == began or (self.start <= began and not good):
                raise ValueError(f"there is no usable picture in {self.source.name}")
            self.source.account.check()
            epoch += 1


def read_sample(source: RecordSource, row: dict, number: int, position: int, options: SampleOptions) -> Sample | None:
    """The sample of a row; None when the row is bad, which is put to the source's account."""
    try:
        record = source.convert(row)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # a null may stand for anything
        source.account.skip("image", row.get("id") or row.get("key") or row.get("path") or number, error)
        return None
    try:
        sample = make_sample(record, position, options)
    except (OSError, ValueError) as error:
        source.account.skip("image", record.id, error)
        return None
    source.account.good("image")
    return sample


def _content_key(*arrays: np.ndarray) -> str:
    """Names what a frozen network is shown. Names of sets and numbers of pictures can be another set's, too."""
    digest = blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _keyed_rng(seed: int, key: str, number: int) -> np.random.Generator:
    """A generator that depends on the words of a key, the same on every machine."""
    return np.random.default_rng((seed, number, *key.encode()))


def empty_sample(size: int) -> Sample:
    """Grey, with nothing to prompt for."""
    side = size // 4
    return Sample(
        pixels=torch.full((3, size, size), 127, dtype=torch.uint8),
        masks=torch.zeros(0, side, side),
        boxes=torch.zeros(0, 4),
        clicks=torch.zeros(0, 2),
        names=torch.zeros(0, dtype=torch.int64),
        keys=[],
        weights=torch.ones(side, side),
        valid_hw=(size, size),
    )
