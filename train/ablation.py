"""What each decision about the text prompt is worth: the same short training from ImageNet, one thing changed a row.

    python -m train.ablation --data DATA --names vit_b_32_names.npz --trunk mobilenet_v2_imagenet.safetensors \\
        --text-encoder weights/text_encoder --crops crops.safetensors --out runs/ablation [ROW...]

Text prompts alone are trained, on DATA/voc and DATA/coco, and scored on DATA/voc/val_semantic.json: the mask of a name
that is there (union of its instances, threshold 0, void ignored), and whether a name is there at all. A row that is
done is not run again, one that was stopped goes on; the table is printed from `runs/ablation/*.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.evaluation.metrics import auroc, intersection_and_union, semantic_scores
from textsam.evaluation.text import semantic_truth
from textsam.files.coco import load_coco
from textsam.files.export import write_json
from textsam.language.vocabulary import Vocabulary
from textsam.model import TextSamConfig, TextSamModel
from textsam.prompting.encoded_image import encode_images
from textsam.prompting.text_reading import read_texts
from textsam.prompting.transforms import masks_at_original_size
from train import command
from train.data import CocoSamples, Source
from train.embedding_table import EmbeddingTable, crop_key
from train.loop import LoopOptions, train
from train.step import TextSamStep
from train.text_encoder import load_targets
from train.tiny import NameIndex, draw_from, first_blocks, read_crop_embeddings
from train.trunk_weights import read_trunk

HELD_OUT = ("bird", "bus", "cow", "motorbike", "sofa")  # of VOC's 20


@dataclass(frozen=True)
class Row:
    """One training.

    Args:
        what: of it is different.
        dense: the similarity of the text to the image's features is drawn into the prompt and trained by itself;
            False: one sparse token is all there is, as in the paper.
        crop_share: of the prompts that are crops' embeddings; 1: no name is ever seen (D.5).
        noise: on each prompt embedding, times its length.
        centred: each modality's mean is taken off.
        distractors: names from outside the data set's list that are taken as absent.
        projection: CLIP's width to a token.
        held_out: names that training never sees, by name or by crop.
    """

    what: str
    dense: bool = True
    crop_share: float = 0.5
    noise: float = 0.2
    centred: bool = True
    distractors: int = 12
    projection: str = "linear"
    held_out: tuple[str, ...] = ()


ROWS = {
    "default": Row("names and crops, noise, centred, dense"),
    "d5": Row("D.5: crops alone, one sparse token", dense=False, crop_share=1.0, noise=0.0, distractors=0),
    "d5-dense": Row("D.5 with the dense form", crop_share=1.0, noise=0.0, distractors=0),
    "d5-dense-noise": Row("the same with noise on the crops' embeddings", crop_share=1.0, distractors=0),
    "sparse": Row("one sparse token instead of the dense form", dense=False),
    "names": Row("names alone, no crops", crop_share=0.0),
    "no-noise": Row("no noise", noise=0.0),
    "not-centred": Row("means left in", centred=False),
    "no-distractors": Row("absent names from the data set's list alone", distractors=0),
    "mlp": Row("MLP projection", projection="mlp"),
    "held-out": Row(f"{', '.join(HELD_OUT)} never trained", held_out=HELD_OUT),
}


class TextStep(TextSamStep):
    """The step of `textsam-tiny` without geometry, in which crops may stand for names everywhere."""

    def __init__(self, model: TextSamModel, table: EmbeddingTable, row: Row, crops_of: dict[int, list]) -> None:
        shares = {"crop_share": row.crop_share, "noise": row.noise, "distractors": row.distractors}
        super().__init__(model, table, rounds=0, **shares)
        self.crops_of = crops_of  # name -> crops of it in any picture

    def texts_of(self, names: list[int]) -> Tensor:
        if self.crop_share < 1:
            return super().texts_of(names)
        return torch.stack([self._any_crop(name) for name in names])

    def text_of(self, name: int, key: tuple[str, int | str] | None, generator: torch.Generator) -> Tensor:
        if self.crop_share == 1 and key not in self.table.crops:
            return self._any_crop(name)
        return super().text_of(name, key, generator)

    def _any_crop(self, name: int) -> Tensor:
        keys = self.crops_of.get(name)
        if not keys:  # a name of which there is no crop at all; it is nowhere present
            return F.normalize(torch.randn_like(self.table.names[name]), dim=-1)
        variants = self.table.crops[keys[int(torch.randint(len(keys), ()))]]
        return variants[int(torch.randint(len(variants), ()))].float()


def run_row(row: Row, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Trains and scores one row."""
    torch.manual_seed(args.seed)
    names, embeddings = load_targets(args.names)
    index = NameIndex(Vocabulary.load(Path(args.text_encoder) / "vocabulary.json"), {n: i for i, n in enumerate(names)})
    hidden = {index[name] for name in row.held_out}
    known = {name: index[name] for data in ("voc", "coco") for name in _names(args.data / data) if name in index}
    shown = {name: number for name, number in known.items() if number not in hidden}
    config = TextSamConfig.tiny(
        text_trained=True, image_size=args.size, text_projection=row.projection,
        similarity_head=row.dense, image_presence=row.dense, dense_geometry=row.dense,
    )  # fmt: skip
    model = TextSamModel(config)
    model.image_encoder.load_trunk(read_trunk(args.trunk))
    model.image_encoder.to(memory_format=torch.channels_last)
    if row.centred:
        model.prompt_encoder.modality_means[:] = embeddings.mean(0)
    crops = read_crop_embeddings(args.crops)
    sources = [Source(args.data / "voc", 1.0, True, "train_semantic.json"), Source(args.data / "coco", 2.5)]
    options = LoopOptions(
        steps=args.steps, batch_size=8, lr=args.lr, trunk_lr=args.lr / 10, muon=True, mixed_precision="no",
        seed=args.seed, workers=0, warmup=20, decay_from=0.6, ema_decay=0.97, save_every=args.steps,
        frozen=first_blocks(6),
    )  # fmt: skip
    data = CocoSamples(sources, shown, size=args.size, instances=3, seed=args.seed, length=args.steps * 8)
    crops_of: dict[int, list] = {}
    for source, dataset in {item[0].folder.name: item[1] for item in data.items}.items():
        for region in (region for image in dataset for region in image.instances):
            if (key := crop_key(source, region.id)) in crops and (name := dataset.name_of(region)) in shown:
                crops_of.setdefault(shown[name], []).append(key)
    distractors = torch.tensor([number for number in draw_from(names) if number not in hidden])
    table = EmbeddingTable(embeddings, crops, distractors, embeddings.mean(0))
    # A row that was interrupted goes on; half of one has no score.
    if train(TextStep(model, table, row, crops_of), data, options, out, (out / "last.pt").exists()) < args.steps:
        raise SystemExit(f"stopped; the same command goes on with {out}")
    trained = TextSamModel.from_pretrained(out / "model")
    return score(trained, args.data / "voc" / "val_semantic.json", index, embeddings, row.held_out)


@torch.no_grad()
def score(
    model: TextSamModel, path: Path, index: NameIndex, embeddings: Tensor, held_out: tuple[str, ...]
) -> dict[str, Any]:
    """Mask of each name that is there, and presence of every name, by each text read alone."""
    dataset = load_coco(path)
    names = list(dataset.categories.values())
    texts = embeddings[[index[name] for name in names]]
    pairs: list[tuple[str, int, int]] = []
    presence: dict[bool, list[tuple[str, float]]] = {True: [], False: []}
    for image in dataset:
        truth = semantic_truth(image, dataset)
        [encoded] = encode_images(model, [image.read()], model.config.image_size)
        reading = read_texts(model, encoded.embeddings, encoded.geometry, texts)
        for row, name in enumerate(names):
            if name in truth.hidden:
                continue
            presence[name in truth.masks].append((name, float(reading.presence[row])))
            if name in truth.masks:
                mask = masks_at_original_size(reading.region_logits[row : row + 1], encoded.geometry)
                both, either = intersection_and_union(mask, truth.masks[name][None], truth.ignore[name])
                pairs.append((name, int(both[0]), int(either[0])))
    figures: dict[str, Any] = {}
    for part in ("trained", "held_out"):
        chosen = [name for name in names if (name in held_out) == (part == "held_out")]
        if chosen:
            columns = zip(*[pair for pair in pairs if pair[0] in chosen], strict=True)
            scores = semantic_scores(*(list(column) for column in columns))
            there, absent = ([p for name, p in presence[side] if name in chosen] for side in (True, False))
            figures[part] = {
                "iou_classes": scores["miou_classes"],
                "iou_pairs": scores["miou_pairs"],
                "auroc": auroc(there, absent),
            }
    return figures


def _names(folder: Path) -> list[str]:
    return list(load_coco(folder / "train.json").categories.values())


def table_of(out: Path) -> str:
    """The rows that are done, in Markdown."""
    lines = ["| row | what | IoU, classes | IoU, pairs | absence AUROC | held out: IoU, AUROC |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, row in ROWS.items():
        if (file := out / f"{name}.json").exists():
            figures = json.loads(file.read_text())
            main, rest = figures["trained"], figures.get("held_out")
            last = ", ".join(_number(rest[key]) for key in ("iou_classes", "auroc")) if rest else "-"
            cells = (_number(main[key]) for key in ("iou_classes", "iou_pairs", "auroc"))
            lines.append(f"| `{name}` | {row.what} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """None: nothing was there to measure, such as presence of a name that is in every picture."""
    return "-" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all of {', '.join(ROWS)}")
    for name in ("data", "text-encoder"):
        parser.add_argument(f"--{name}", required=True, type=command.folder)
    for name in ("trunk", "names", "crops"):
        parser.add_argument(f"--{name}", required=True, type=command.file)
    parser.add_argument("--out", required=True, type=command.new_folder)
    parser.add_argument("--steps", type=command.at_least(1), default=200)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=command.at_least(0), default=0)
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    options = {name: getattr(args, name) for name in ("steps", "size", "seed", "lr")}
    for file in (args.out / place for name in ROWS for place in (f"{name}.json", f"{name}/options.json")):
        made = json.loads(file.read_text()) if file.exists() else {}
        if other := [f"--{name} {made[name]}" for name in options if made.get(name, options[name]) != options[name]]:
            parser.error(f"{file} was made with {' '.join(other)}: ask for the same, or name another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.rows or ROWS:
        if not (args.out / f"{name}.json").exists():
            write_json(args.out / name / "options.json", options)  # a stopped row goes on with these alone
            figures = run_row(ROWS[name], args, args.out / name)
            part = args.out / f"{name}.json.part"
            part.write_text(json.dumps({**figures, **options}))
            os.replace(part, args.out / f"{name}.json")
        print(table_of(args.out), flush=True)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
