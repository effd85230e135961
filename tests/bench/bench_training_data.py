"""Is training ever waiting for its data? What reading cached features costs, beside the training step that uses them.

    python tests/bench/bench_training_data.py [--clips 4000] [--batch 256] [--steps 20]

Writes a cache of CLIPS frame maps of the `heads` towers (8 x 16 x 768 float16, 197 kB a clip) with random numbers, and reads batches as the
loop does: sorted positions, one copy out of the mapping, captions' states beside them. Prints rows a second of CPU of reading alone, and
the time that a training step of the same batch takes for comparison (`heads`, width 192, frozen towers, float32).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
from vctool.models.checkpoint import build_model
from vctool.models.losses import LossConfig, RetrievalLoss
from vctool.training.row_cache import RowCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        frames = RowCache(Path(folder), "maps", {}, (8, 16, 768), np.float16)
        texts = RowCache(Path(folder), "texts", {}, (32, 384), np.float16)
        for store in (frames, texts):
            row = rng.normal(size=store.shape).astype(np.float16)
            with store.adding(chosen.clips) as writer:
                for i in range(chosen.clips):
                    writer.add(str(i), row, 8)
        held = [store.rows([str(i) for i in range(chosen.clips)]) for store in (frames, texts)]
        seconds = []
        for _ in range(chosen.steps):
            wanted = np.sort(rng.permutation(chosen.clips)[: chosen.batch])
            began = time.process_time()
            maps, states = (torch.from_numpy(one.take(wanted)) for one in held)
            seconds.append(time.process_time() - began)
        read = float(np.median(seconds))
        config = ModelConfig(
            embed_dim=192,
            frames=8,
            backbone=BackboneConfig("offline", "heads"),
            query=QueryConfig(max_length=32),
            temporal=TemporalConfig(layers=4, head_width=32, mlp_ratio=2.0),
        )
        model, loss = build_model(config).train(), RetrievalLoss(LossConfig())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        ids, mask = torch.ones(chosen.batch, 32, dtype=torch.long), torch.ones(chosen.batch, 32, dtype=torch.long)
        steps = []
        for _ in range(3):
            began = time.process_time()
            feature = model.backbone.frame_features(maps.flatten(0, 1).float()).reshape(chosen.batch, 8, -1)
            clips = model.encode_features(feature, torch.ones(chosen.batch, 8, dtype=torch.bool))
            scores = model.score(model.query_from_states(states.float(), ids, mask), clips)
            loss(scores, torch.eye(chosen.batch, dtype=torch.bool), torch.full((chosen.batch,), -1)).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.process_time() - began)
        step = float(np.median(steps))
        print(f"reading a batch of {chosen.batch}: {1000 * read:.1f} ms of CPU, {chosen.batch / read:,.0f} rows a second")
        print(f"the step that uses it: {1000 * step:.0f} ms of CPU; reading is {100 * read / step:.1f} % of it, in a thread of its own")


if __name__ == "__main__":
    main()
