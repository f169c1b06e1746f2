"""Fit the embedded text encoder to CLIP ViT-B/32's embeddings of known names, and measure it.

    python -m train.text_encoder --names vit_b_32_names.npz --out weights/text_encoder      (about 10 minutes, 1 core)
    python -m train.text_encoder --names vit_b_32_names.npz --out weights/text_encoder --evaluate

The npz holds `names`, `embeddings` (K, 512) and `source`; a name may occur in several sources.
"""

from __future__ import annotations

import argparse
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.language.small_clip import SmallTextEncoder
from textsam.language.vocabulary import Vocabulary, _plain, singulars
from train import command

# LVIS names of several words were embedded with underscores, so every other source is preferred to it.
SOURCE_ORDER = ("coco", "objects365", "openimages", "lvis")
TEMPLATES = (
    "a {}", "an {}", "the {}", "{}", "photo of a {}", "a photo of a {}", "a picture of the {}", "an image of a {}",
    "my {}", "one {}", "some {}", "this {}", "a photo of the {}", "a close-up of a {}",
)  # fmt: skip
ADJECTIVES = (
    "small", "big", "red", "blue", "old", "new", "white", "tall", "dirty", "shiny", "wooden", "broken", "striped",
    "brown", "yellow", "fluffy", "left", "nearest", "long", "round", "empty", "pretty", "dark", "open", "plain",
    "heavy",
)  # fmt: skip
# Never seen in training; `evaluate` uses them.
HELD_OUT_TEMPLATES = ("a snapshot of a {}", "that {}", "please find the {}", "her {}")
HELD_OUT_ADJECTIVES = ("tiny", "green", "young", "golden", "cute", "wet", "large", "grey")
# Other spellings and everyday words for names of the list (checked against it by Vocabulary).
EVERYDAY = {
    "aeroplane": "airplane", "plane": "airplane", "motorbike": "motorcycle", "bike": "bicycle", "human": "person",
    "pedestrian": "person", "lady": "woman", "tv monitor": "monitor/tv", "tvmonitor": "monitor/tv",
    "monitor": "monitor/tv", "diningtable": "dining table", "pottedplant": "potted plant", "plant": "potted plant",
    "pants": "trousers", "bra": "brassiere", "purse": "wallet/purse", "hair": "human hair", "face": "human face",
    "eye": "human eye", "ear": "human ear", "nose": "human nose", "mouth": "human mouth", "head": "human head",
    "hand": "human hand", "arm": "human arm", "leg": "human leg", "foot": "human foot", "beard": "human beard",
    "phone": "mobile phone", "cellphone": "cell phone", "smartphone": "mobile phone", "fridge": "refrigerator",
    "rhino": "rhinoceros", "hippo": "hippopotamus", "panda": "giant panda", "kitty": "kitten", "automobile": "car",
    "lorry": "truck", "burger": "hamburger", "fries": "french fries", "tram": "trolley", "settee": "sofa",
    "heels": "high heels", "bathtowel": "bath towel", "octopus": "octopus (animal)",
    "bow": "bow (decorative ribbons)", "pan": "pan (for cooking)", "router": "router/modem",
    "salmon": "salmon (fish)", "squid": "squid (food)", "picture": "picture/frame", "trash bin": "trash can",
    "garbage can": "trash can", "rooster": "cock", "sunglass": "sunglasses", "eyeglasses": "glasses",
    "spectacle": "glasses", "racquet": "tennis racket", "lamb": "lamb (animal)", "washer": "washing machine",
    "stove top": "stove", "trainers": "sneakers", "sneaker": "sneakers", "bin": "trash can", "bagpipes": "bagpipe",
    "seatbelt": "seat belt", "swimming trunks": "swimwear", "puppy dog": "puppy", "soda": "pop (soda)",
    "taxi cab": "taxi",
}  # fmt: skip


def load_targets(path: str | Path) -> tuple[list[str], Tensor]:
    """Distinct names and their embeddings (K, 512), each from the best source that has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no npz of names, or its arrays do not belong together.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, sources, values = (archive[key] for key in ("names", "source", "embeddings"))
    # Of what NumPy can do with a file that is none of its own.
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be an npz with the arrays names (text), source and embeddings, but cannot be read as one "
            f"({error})"
        ) from error
    if not len(names) or values.shape != (len(names), 512) or sources.shape != names.shape:
        raise ValueError(
            f"{path} must hold names (K,), source (K,) and embeddings (K, 512), K at least 1, but holds {names.shape}, "
            f"{sources.shape} and {values.shape}"
        )
    names, sources, embeddings = names.tolist(), sources.tolist(), torch.from_numpy(values.astype(np.float32))
    if unknown := sorted(set(sources) - set(SOURCE_ORDER)):
        raise ValueError(f"{path} has names of the source {unknown[0]!r}; expected {', '.join(SOURCE_ORDER)}")
    chosen: dict[str, int] = {}
    for index in sorted(range(len(names)), key=lambda i: SOURCE_ORDER.index(sources[i])):
        chosen.setdefault(names[index], index)
    return list(chosen), F.normalize(embeddings[list(chosen.values())], dim=-1)


def build_vocabulary(names: Sequence[str]) -> Vocabulary:
    """Names with aliases: everyday words, parts of "monitor/tv", names in brackets without them ("bat (animal)")."""
    aliases = {alias: name for alias, name in EVERYDAY.items() if name in names and alias not in names}
    for name in names:
        for part in name.split(" (")[0].split("/"):
            if part.strip() not in names:
                aliases.setdefault(part.strip(), name)
    return Vocabulary(names, aliases)


def plural(name: str) -> str:
    """A plausible English plural of a name; unchanged if it looks like one."""
    if name.endswith(("s", ")")):
        return name
    if name.endswith(("x", "ch", "sh")):
        return name + "es"
    if name.endswith("man"):
        return name[:-3] + "men"
    return name[:-1] + "ies" if name.endswith("y") and name[-2] not in "aeiou" else name + "s"


def variation(name: str, rng: random.Random, templates: Sequence[str], adjectives: Sequence[str]) -> str:
    """Another way to ask for a name: plural, adjective, article or frame, capitals."""
    if rng.random() < 0.35:
        name = plural(name)
    if rng.random() < 0.5:
        name = f"{rng.choice(adjectives)} {name}"
    text = rng.choice(templates).format(name)
    return text.upper() if rng.random() < 0.1 else text


def fit(
    model: SmallTextEncoder,
    targets: Tensor,
    *,
    steps: int = 3000,
    batch_size: int = 256,
    lr: float = 3e-3,
    seed: int = 0,
    warmup: int = 100,
) -> None:
    """Cosine distance to the target plus a softmax over all names, on names and variations of them."""
    names, rng = model.vocabulary.names, random.Random(seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 1e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    with torch.no_grad():  # start in the space that the targets span best
        basis = torch.linalg.svd(targets, full_matrices=False).Vh[: model.sizes["width"]]
        model.text_projection.weight[:, : len(basis)] = basis.T
    model.train()
    for step in range(steps):
        indices = rng.choices(range(len(names)), k=batch_size)
        # A quarter are variations; on their own, because they are longer and a batch is padded.
        exact = batch_size * 3 // 4
        varied = [variation(names[i], rng, TEMPLATES, ADJECTIVES) for i in indices[exact:]]
        embeddings = torch.cat([model([names[i] for i in indices[:exact]]), model(varied)])
        cosine = (embeddings * targets[indices]).sum(-1)
        contrast = F.cross_entropy(50.0 * embeddings @ targets.T, torch.tensor(indices))
        loss = 10.0 * (1 - cosine).mean() + 0.1 * contrast
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  cosine {cosine.mean().item():.4f}", flush=True)
    model.eval()


def nearest_share(embeddings: Tensor, targets: Tensor, expected: Tensor) -> float:
    """Share of embeddings whose nearest target (cosine) is the expected one."""
    return ((embeddings @ targets.T).argmax(-1) == expected).float().mean().item()


@torch.no_grad()
def evaluate(model: SmallTextEncoder, targets: Tensor) -> dict[str, float]:
    """Scores against the true embeddings, of the network alone (`raw`) and of `encode`, which finds the name first."""
    names, vocabulary, rng = model.vocabulary.names, model.vocabulary, random.Random(1)
    expected = torch.arange(len(names))
    embeddings = model.encode(names)
    cosine = (embeddings * targets).sum(-1)
    scores = {
        "known names nearest to their own target": nearest_share(embeddings, targets, expected),
        "cosine to the target, mean": cosine.mean().item(),
        "cosine to the target, minimum": cosine.min().item(),
    }
    kinds = {
        "article": [f"a {name}" for name in names],
        "plural": [plural(name) for name in names],
        "adjective": [f"the {rng.choice(HELD_OUT_ADJECTIVES)} {name}" for name in names],
        "photo of a": [f"photo of a {name}" for name in names],
        "capitals": [f"{name.upper()}!" for name in names],
        "mixed, never seen": [variation(name, rng, HELD_OUT_TEMPLATES, HELD_OUT_ADJECTIVES) for name in names],
    }
    for kind, texts in kinds.items():
        scores[f"{kind}: nearest to their own target, raw"] = nearest_share(model(texts), targets, expected)
        found = torch.tensor([names.index(vocabulary.find(t)) if t in vocabulary else -1 for t in texts])
        same = [a == b or own_plural(names, a, b) for a, b in zip(found.tolist(), range(len(names)), strict=True)]
        scores[f"{kind}: found by encode"] = float(np.mean(same))
    return scores


def own_plural(names: Sequence[str], found: int, wanted: int) -> bool:
    """Whether the text asked for by `wanted` is itself a name: "boot" -> "boots", "hot-air" -> "hot air"."""
    return found >= 0 and _plain(names[found]) in {*map(_plain, singulars(plural(names[wanted])))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", required=True, type=command.file, help="npz with names, embeddings and source")
    parser.add_argument("--out", required=True, type=command.new_folder, help="folder of the weights")
    parser.add_argument("--evaluate", action="store_true", help="only print the scores of the weights in --out")
    parser.add_argument("--steps", type=command.at_least(1), default=3000)
    parser.add_argument("--batch-size", type=command.at_least(2), default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=command.at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    names, targets = load_targets(args.names)
    if not args.evaluate:
        model = SmallTextEncoder(build_vocabulary(names))
        print(f"{len(names)} names, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        fit(model, targets, steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
        model.save_pretrained(args.out)
    for name, value in evaluate(SmallTextEncoder.from_pretrained(args.out), targets).items():
        print(f"{value:7.4f}  {name}")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
