"""Every architecture that `vctool fetch` knows, in full size with random weights: is it open_clip's, and how fast is it here?

    python tests/bench/bench_towers.py [ARCHITECTURE …] [--out towers.jsonl] [--seconds 12]

For each architecture, smallest first, in a process of its own: the pooled and per-token text features and the frame features are
compared with what open_clip computes; the text and frame graphs are exported and compared with PyTorch; then the frame graph runs
for a while on one thread of ONNX Runtime (fp32, batches of 4) and so does the text graph (one text at a time, padded to the context).
One JSON line each: largest differences as parts of the largest value, frames and texts for each second of process CPU time (the best
of the batches), parameters, seconds, and the largest memory the process had.
The speeds of `vctool/zoo/table.py` are this program's. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALLEST_FIRST = (
    "MobileCLIP2-S0", "PE-Core-T-16-384", "PE-Core-S-16-384", "MobileCLIP2-S2", "ViT-B-32-quickgelu", "ViT-B-16-quickgelu",
    "MobileCLIP2-B", "ViT-B-32", "ViT-B-16", "ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "ViT-B-16-SigLIP2", "PE-Core-B-16",
    "ViT-L-14-quickgelu", "ViT-L-14", "PE-Core-L-14-336", "ViT-H-14-quickgelu",
)  # fmt: skip


def examine(architecture: str, seconds: float) -> dict[str, Any]:
    """All that is said above of one architecture."""
    import numpy as np
    import torch

    from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
    from vctool.models.backbone import normalize_pixels
    from vctool.models.open_clip_backbone import OpenClipBackbone
    from vctool.models.video_colbert import VideoColBERT
    from vctool.runtime.sessions import Graph
    from vctool_export.graphs import graph_specs
    from vctool_export.onnx_export import export_graph

    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    backbone = OpenClipBackbone(architecture).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # a fresh one does nothing, and folding it would prove nothing
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    model, length, side = backbone.model, backbone.context_length, backbone.preprocess.size
    text = sum(p.numel() for p in backbone.text.parameters())
    visual = sum(p.numel() for p in model.visual.parameters())
    if backbone.text is model:
        text -= visual
    found: dict[str, Any] = {"architecture": architecture, "image_parameters": visual, "text_parameters": text}
    found |= {"dim": backbone.embed_dim, "context": length, "size": side}

    rng = np.random.default_rng(1)
    vocabulary = backbone.text.token_embedding.weight.shape[0]
    ids, mask = torch.zeros(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.int64)
    for row, count in enumerate((3, length // 2, length)):
        ids[row, :count] = torch.from_numpy(rng.integers(1, vocabulary - 1, count))
        ids[row, count - 1] = vocabulary - 1  # the highest id is where open_clip's argmax pooling looks
        mask[row, :count] = 1
    frames = torch.from_numpy(rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8))
    with torch.no_grad():
        states = backbone.text_states(ids, mask)
        found["pooled_error"] = _apart(backbone.text_pooled(states, ids, mask), model.encode_text(ids))
        found["frame_error"] = _apart(backbone(frames), model.encode_image(normalize_pixels(frames, backbone.preprocess)))
        setattr(backbone.text, pool := "pool_type" if hasattr(backbone.text, "pool_type") else "text_pool_type", "none")
        found["token_error"] = _apart(backbone.text_head(states, ids, mask), model.encode_text(ids))
        setattr(backbone.text, pool, "last" if "siglip" in architecture.lower() else "argmax")

    config = ModelConfig(
        name=architecture,
        embed_dim=backbone.embed_dim,
        backbone=BackboneConfig("open_clip", architecture),
        query=QueryConfig(policy="pooled", expand="off", max_length=length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    whole = VideoColBERT(config, backbone).eval()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("frame", "text"):
            path = Path(folder) / f"{name}.onnx"
            spec = next(s for s in graph_specs(whole) if s.name == name)
            export_graph(spec, path)
            feeds = {"frames": frames} if name == "frame" else {"input_ids": ids, "attention_mask": mask}
            with torch.no_grad():  # of the module as trained: what was folded for the export must not show
                wanted = backbone(frames) if name == "frame" else whole.encode_query(ids, mask).query_BQD
            del spec
            session = Graph(path, device="cpu", threads=1)
            (got,) = session.run((("frame_features",) if name == "frame" else ("query_tokens",)), {k: v.numpy() for k, v in feeds.items()})
            found[f"{name}_graph_error"] = _apart(torch.from_numpy(got), wanted)
            if name == "frame":
                batch = {"frames": rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)}
                found["frames_per_cpu_second"] = round(4 * _rate(session, "frame_features", batch, seconds), 2)
            else:
                one = {"input_ids": ids[1:2].numpy(), "attention_mask": mask[1:2].numpy()}
                found["texts_per_cpu_second"] = round(_rate(session, "query_tokens", one, seconds / 2), 2)
            del session
    found["seconds"] = round(time.perf_counter() - began, 1)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def _apart(got: Any, wanted: Any) -> float:
    """The largest difference, as a part of the largest value."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float((got - wanted).abs().max() / wanted.abs().max())


def _rate(session: Any, output: str, feeds: dict[str, Any], seconds: float) -> float:
    """Calls for each CPU second: the best of those that fit into `seconds` of CPU time, three at least."""
    session.run((output,), feeds)
    best, spent, calls = 0.0, 0.0, 0
    while spent < seconds or calls < 3:
        began = time.process_time()
        session.run((output,), feeds)
        took = time.process_time() - began
        best, spent, calls = max(best, 1 / took), spent + took, calls + 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(examine(args.architectures[0], args.seconds)))
        return
    for architecture in args.architectures or SMALLEST_FIRST:
        command = [sys.executable, __file__, architecture, "--inside", "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = {"architecture": architecture, "failed": done.stderr.strip()[-300:]}
        line = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else json.dumps(failed)
        print(line, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")


if __name__ == "__main__":
    main()
