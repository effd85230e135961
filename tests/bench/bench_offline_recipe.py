"""The offline model's recipe: choices made on one half of the real clips, told on the other.

    python tests/bench/bench_offline_recipe.py [--clips FOLDER] [--splits 400]

FOLDER holds clips and captions.jsonl (three captions a clip), by default the real clips beside the repository. For every
candidate (text of a class, softening of the probabilities, classes counted, a share of a ridge map from the classifier's
features to its class texts, words before the query, branch) the rank of each caption's clip among all clips is computed
once. Then, for many random splits of the clips in two, the candidate with the highest R@1 on one half is told on the other. A
clip's value is the mean over the splits in which it was on the telling side; intervals come from drawing clips (2.5 and
97.5 %, 5,000 draws). "base" is the recipe without any of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))
from vctool.data.pinned import minilm_tokenizer  # noqa: E402
from vctool.models.backbone import normalize_pixels  # noqa: E402
from vctool.models.offline_backbone import ConseBackbone, imagenet_class_kinds, imagenet_class_names  # noqa: E402
from vctool.preprocessing.pixels import Preprocessor  # noqa: E402
from vctool.video.decode import decode_frames  # noqa: E402

REALCLIPS = HERE.parents[3] / "shared" / "data" / "realclips"
Array = np.ndarray[Any, np.dtype[np.float32]]
Candidate = tuple[str, float, int, float, str, str]  # class text, temperature, classes, ridge share, query prefix, branch
BASE: Candidate = ("photo", 1.0, 10, 0.0, "", "fv")
CLASS_TEXTS = {"name": "{name}", "photo": "a photo of a {name}", "kind": "a photo of a {name}, a kind of {kind}"}
PREFIXES = ("", "a photo of ", "a video of ")


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Texts:
    """Pooled sentence embeddings."""

    def __init__(self, model: ConseBackbone) -> None:
        from tokenizers import Tokenizer

        self.tower, self.tokenizer = model.text_tower, Tokenizer.from_str(minilm_tokenizer())

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Array:
        ids = [self.tokenizer.encode(text).ids[:64] for text in texts]
        found = np.zeros((len(texts), 384), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            mask = torch.zeros(len(rows), max(len(ids[i]) for i in rows), dtype=torch.int64)
            padded = torch.zeros_like(mask)
            for row, i in enumerate(rows):
                padded[row, : len(ids[i])], mask[row, : len(ids[i])] = torch.tensor(ids[i]), 1
            state, weight = self.tower(padded, mask), mask[..., None].float()
            found[rows] = unit(((state * weight).sum(1) / weight.sum(1)).numpy())
        return found


@torch.no_grad()
def frames_of(model: ConseBackbone, paths: list[Path]) -> tuple[list[Array], list[Array]]:
    """Of each clip, the logits [F, 1000] and the pooled features before them [F, 1280]."""
    resize, net = Preprocessor(model.preprocess), model.image_tower.net
    logits, pooled = [], []
    for path in paths:
        frames = np.stack(decode_frames(path, 8, transform=resize).frames)
        before = net.forward_head(net.forward_features(normalize_pixels(torch.from_numpy(frames), model.preprocess)), pre_logits=True)
        pooled.append(before.numpy())
        logits.append(net.classifier(before).numpy())
    return logits, pooled


def features(logit_FC: Array, text_CD: Array, temperature: float, classes: int) -> Array:
    weight = np.exp((logit_FC - logit_FC.max(-1, keepdims=True)) / temperature)
    least = np.partition(weight, -classes, axis=-1)[:, -classes][:, None]
    weight = np.where(weight >= least, weight, 0)
    return unit(weight @ text_CD)


def ridge(model: ConseBackbone, text_CD: Array) -> Array:
    """A map [1280, 384] from the classifier's features to text: each class's weights to its text, no picture needed."""
    weight = model.image_tower.net.classifier.weight.numpy()
    weight = weight - weight.mean(0)
    gram = weight.T @ weight
    scale = np.trace(gram) / len(gram)
    return np.linalg.solve(gram + scale * np.eye(len(gram)), weight.T @ (text_CD - text_CD.mean(0)))  # type: ignore[no-any-return]


def ranks_of(clips: list[Array], query_QD: Array, right_Q: Any) -> dict[str, Any]:
    best = np.stack([(query_QD @ f.T).max(1) for f in clips], 1)
    mean = np.stack([query_QD @ unit(f.mean(0)) for f in clips], 1)
    found = {}
    for branch, score in {"f": best, "v": mean, "fv": best + mean}.items():
        own = score[np.arange(len(score)), right_Q][:, None]
        found[branch] = 1 + (score > own).sum(1) + ((score == own).sum(1) - 1) / 2
    return found


MEASURES: dict[str, Callable[[Any], Any]] = {
    "R@1": lambda r: 100.0 * (r <= 1), "R@5": lambda r: 100.0 * (r <= 5), "R@10": lambda r: 100.0 * (r <= 10), "MRR": lambda r: 100 / r,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=REALCLIPS)
    parser.add_argument("--splits", type=int, default=400)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.clips / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    captions = [caption for row in rows for caption in row["captions"]]
    clip_Q = np.repeat(np.arange(len(rows)), [len(row["captions"]) for row in rows])
    model = ConseBackbone()
    texts = Texts(model)
    described = list(zip(imagenet_class_names(), imagenet_class_kinds(), strict=True))
    classes = {name: texts([form.format(name=n, kind=k) for n, k in described]) for name, form in CLASS_TEXTS.items()}
    queries = {prefix: texts([prefix + caption for caption in captions]) for prefix in PREFIXES}
    logits, pooled = frames_of(model, [args.clips / row["video"] for row in rows])
    rank: dict[Candidate, Any] = {}
    for name, temperature, count in product(classes, (1.0, 1.5, 2.0), (10, 30, 50, 100)):
        plain = [features(x, classes[name], temperature, count) for x in logits]
        linear = ridge(model, classes[name])
        for share in (0.0, 0.2, 0.4):
            mixed = [unit(f + share * unit(x @ linear)) for f, x in zip(plain, pooled, strict=True)]
            for prefix in PREFIXES:
                for branch, found in ranks_of(mixed, queries[prefix], clip_Q).items():
                    rank[name, temperature, count, share, prefix, branch] = found
    families: dict[str, Callable[[Candidate], bool]] = {
        "class text, softening, classes; fv": lambda c: c[3] == 0 and c[4] == "" and c[5] == "fv",
        "and the branch": lambda c: c[3] == 0 and c[4] == "",
        "and the ridge map": lambda c: c[4] == "",
        "and the query's prefix (all)": lambda c: True,
    }
    for label, wanted in families.items():
        report(label, {c: r for c, r in rank.items() if wanted(c)}, rank[BASE], clip_Q, args.splits)
    print("\nall clips, nothing held out:")
    for chosen in (
        BASE,
        ("photo", 1.5, 10, 0.0, "", "fv"),
        ("kind", 1.0, 10, 0.0, "", "fv"),
        *(("kind", 1.5, 10, 0.0, "", b) for b in ("f", "v", "fv")),
    ):
        print(chosen, {name: round(float(measure(rank[chosen]).mean()), 1) for name, measure in MEASURES.items()})
    print("\nbranches of the shipped recipe, difference and interval over clips:")
    for one, other in (("f", "v"), ("fv", "f"), ("fv", "v")):
        for name in ("R@1", "MRR"):
            pair = [MEASURES[name](rank["kind", 1.5, 10, 0.0, "", b]) for b in (one, other)]
            print(f"{one} - {other} {name}: {told(per_clip(pair[0] - pair[1], clip_Q))}")


def per_clip(value_Q: Any, clip_Q: Any) -> Any:
    return np.array([value_Q[clip_Q == clip].mean() for clip in range(clip_Q.max() + 1)])


def told(value_N: Any) -> str:
    draws = np.random.default_rng(0).integers(0, len(value_N), (5000, len(value_N)))
    low, high = np.percentile(value_N[draws].mean(1), [2.5, 97.5])
    return f"{value_N.mean():.1f} [{low:.1f}, {high:.1f}]"


def report(label: str, rank: dict[Candidate, Any], base_Q: Any, clip_Q: Any, splits: int) -> None:
    names, rank_CQ = list(rank), np.stack(list(rank.values()))
    rng = np.random.default_rng(0)
    total = {name: np.zeros(len(clip_Q)) for name in MEASURES}
    count_Q, picked = np.zeros(len(clip_Q)), Counter[Candidate]()
    clips = int(clip_Q.max()) + 1
    for _ in range(splits):
        order = rng.permutation(clips)
        for half in (order[: clips // 2], order[clips // 2 :]):
            chosen_on = np.isin(clip_Q, half)
            best = int((rank_CQ[:, chosen_on] <= 1).mean(1).argmax())
            picked[names[best]] += 1
            for name, measure in MEASURES.items():
                total[name][~chosen_on] += measure(rank_CQ[best][~chosen_on])
            count_Q[~chosen_on] += 1
    print(f"\n{label}: {len(names)} candidates; most often chosen: {picked.most_common(3)}")
    for name, measure in MEASURES.items():
        new_Q = total[name] / count_Q
        print(f"  {name}: {told(per_clip(new_Q, clip_Q))}, gain over base {told(per_clip(new_Q - measure(base_Q), clip_Q))}")


if __name__ == "__main__":
    main()
