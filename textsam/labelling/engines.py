"""Who runs the step: this process, or the workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textsam.labelling.shards import RunFolder
from textsam.labelling.step import Labeller, LabelSettings

Counts = tuple[int, int]  # good and bad pictures
START_ATTEMPTS = 3


def run_local(
    settings: LabelSettings, out: str, shards: Sequence[int], on_picture: Callable[[bool], None] = lambda good: None
) -> Iterator[Counts]:
    """One shard after the other, in this process."""
    labeller, folder = Labeller(settings), RunFolder(out)
    for shard in shards:
        yield labeller.label_shard(folder, shard, on_picture)


@dataclass(frozen=True)
class RayOptions:
    """
    Attributes:
        address: of a cluster, such as "auto" or "ray://head:10001"; None: a Ray on this machine, for this run.
        workers: actors, each with a model; None: one for each GPU of the cluster, or one.
    """

    address: str | None = None
    workers: int | None = None


class ShardWorker:
    """What an actor of Ray Data's `map_batches` does: it loads the model once, and labels shards.

    Args:
        folder: where the run was started, which relative addresses start from.
    """

    def __init__(self, settings: LabelSettings, out: str, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self.labeller, self.folder = Labeller(settings), RunFolder(out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts = [self.labeller.label_shard(self.folder, int(shard)) for shard in batch["shard"]]
        good, bad = np.array(counts, np.int64).reshape(-1, 2).T
        return {"good": good, "bad": bad}


def run_ray(settings: LabelSettings, out: str, shards: Sequence[int], options: RayOptions) -> Iterator[Counts]:
    """The same step on Ray Data, one block for each shard; counts come in whatever order the shards are done.

    A worker that dies is started again and its shard labelled again; since a shard is one file under one name, nothing
    is lost or doubled. All machines must see the pictures and `out` under the same addresses.

    Raises:
        ImportError: the `ray` extra is not installed. ConnectionError: there is no cluster at the address.
        RuntimeError: workers fail, for the reason given.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _start(ray, options.address)
    try:
        yield from _map_shards(ray, settings, out, shards, options)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"A worker of Ray failed: {_reason(error)}") from error
    finally:
        if ours:
            ray.shutdown()


def _map_shards(
    ray: Any, settings: LabelSettings, out: str, shards: Sequence[int], options: RayOptions
) -> Iterator[Counts]:
    cluster = ray.cluster_resources()
    on_gpu = cluster.get("GPU", 0) >= 1 and (settings.device or "cuda").startswith("cuda")
    workers = min(options.workers or (int(cluster["GPU"]) if on_gpu else 1), len(shards))
    # Ray gives a worker as many threads as CPUs.
    share = 1 if on_gpu else max(int(cluster.get("CPU", 1)) // workers, 1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised; nobody needs them twice
    done = ray.data.from_items(
        [{"shard": int(shard)} for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardWorker,
        fn_constructor_args=(settings, out, os.getcwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=share,
        num_gpus=1 if on_gpu else 0,
    )
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        for good, bad in zip(batch["good"], batch["bad"], strict=True):
            yield int(good), int(bad)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise ImportError('--engine ray needs Ray: pip install "textsam[ray]".') from error
    return ray


def _start(ray: Any, address: str | None) -> None:
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked this run to report to anybody
        _start_here(ray)
        return
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, logging_level="error", log_to_driver=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"There is no Ray cluster at {address!r}: {error}") from error


def _start_here(ray: Any) -> None:
    """Ray gives the processes that it starts 30 s, which is little on a busy machine."""
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init("local", include_dashboard=False, logging_level="error", log_to_driver=False)
            return
        except Exception as error:  # Ray raises nothing narrower here
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise RuntimeError(f"Ray does not start on this machine: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The last line of the deepest cause that says anything: the worker's own error."""
    reason = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = lines[-1] if lines else reason
        cause = cause.__cause__
    return reason
