"""Models and adapters to the Hugging Face Hub, each with a card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsam import __version__
from textsam.checkpoints.adapters import save_adapter
from textsam.checkpoints.hub import upload

if TYPE_CHECKING:
    from textsam.modeling.text_sam import TextSamNetwork
    from textsam.predictor import TextSam

TRAINING_FILE, CARD_FILE = "training.json", "README.md"
Record = Mapping[str, Any] | str | os.PathLike[str] | None


def push_to_hub(
    sam: TextSam,
    repo_id: str,
    *,
    training: Record = None,
    card: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """A whole model, with its small encoders, training record and card; `textsam.load(repo_id)` reads it.

    The token is huggingface_hub's: `hf auth login` or HF_TOKEN.

    Args:
        training: the record that training writes (training.json), or its path; it goes along and into the card.
        card: Markdown, such as `python -m train.model_card` makes from scores; None: one made from the record.
        private: when the repository is new. revision: a branch to push to; None: main.
    Returns:
        The address of the repository.
    Raises:
        ValueError: not a Hub id, or a record that is not JSON. PermissionError, ConnectionError: as `textsam.load`.
    """
    record = _read_record(training)

    def write(folder: Path) -> str:
        sam.save_pretrained(folder)
        use = f'import textsam\n\nsam = textsam.load("{repo_id}")\nfound = sam.predict("photo.jpg", text="cat")'
        return card or build_card(repo_id, sam.model, use, record)

    return _push(repo_id, write, record, private, revision)


def push_adapter(
    model: TextSamNetwork,
    repo_id: str,
    *,
    training: Record = None,
    card: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """The trained text prompt alone, a repository of some hundred kB; `textsam.load(base, adapter=repo_id)` reads it.

    Arguments, result and errors as for `push_to_hub`; ValueError also when the text prompt is untrained.
    """
    record = _read_record(training)

    def write(folder: Path) -> str:
        save_adapter(model, folder)
        use = f'import textsam\n\nsam = textsam.load("facebook/sam-vit-base", adapter="{repo_id}")'
        return card or build_card(repo_id, model, use, record, is_adapter=True)

    return _push(repo_id, write, record, private, revision)


def build_card(
    repo_id: str, model: TextSamNetwork, use: str, training: Mapping[str, Any] | None, *, is_adapter: bool = False
) -> str:
    """A card that says what the configuration and the training record say, and that nothing else is known."""
    from huggingface_hub import ModelCardData

    config = model.config
    data = ModelCardData(
        license="apache-2.0",
        library_name="textsam",
        pipeline_tag="image-segmentation",
        tags=["segment-anything", "text-prompt", "open-vocabulary"] + ["adapter"] * is_adapter,
    )
    names = model.text_parameter_names() if is_adapter else list(model.state_dict())
    count = sum(model.state_dict()[name].numel() for name in names)
    clip = ":".join(part for part in (config.clip_name, config.clip_pretrained) if part)
    text = f"trained, in the space of CLIP {clip}" if config.text_trained else "not trained: words rank automatic masks"
    kind = "A text prompt for SAM checkpoints" if is_adapter else f"A {config.encoder_type} encoder with SAM's decoder"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id}",
        f"{kind}, for [TextSAM](https://pypi.org/project/textsam/) {__version__}.",
        f"```python\n{use}\n```",
        _table([("parameters", f"{count:,}"), ("input side", f"{config.image_size} px"), ("text prompt", text)]),
        "## Training",
    ]
    if training:
        flat = {**training, **(training["options"] if isinstance(training.get("options"), Mapping) else {})}
        parts.append(_table([(k, json.dumps(v)) for k, v in flat.items() if not isinstance(v, Mapping)]))
    else:
        parts.append("There is no record of it.")
    parts.append("## Scores\n\nNone were given with this card; `textsam evaluate` measures them.")
    return "\n\n".join(parts) + "\n"


def _push(
    repo_id: str,
    write: Callable[[Path], str],
    record: Mapping[str, Any] | None,
    private: bool,
    revision: str | None,
) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / CARD_FILE).write_text(write(folder), encoding="utf-8")
        if record is not None:
            (folder / TRAINING_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return upload(repo_id, folder, message=f"TextSAM {__version__}", private=private, revision=revision)


def _read_record(training: Record) -> Mapping[str, Any] | None:
    if training is None or isinstance(training, Mapping):
        return training
    try:
        content = json.loads(Path(training).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(training)} is not a training record in JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(training)} must hold a JSON object, but holds a {type(content).__name__}.")
    return content


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [("", ""), ("---", "---"), *((a, b.replace("|", "\\|")) for a, b in rows)]
    return "\n".join(f"| {a} | {b} |" for a, b in lines)
