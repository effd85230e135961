"""Find clips without vctool: python find.py MODEL clips.npz "a dog catching a frisbee". Needs numpy, onnxruntime, tokenizers.

For models whose tokenizer is of the kind `bert` (`offline`, `demo`, and what is trained on them) and stores of float16 or int8.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

model, store, text = Path(sys.argv[1]), np.load(sys.argv[2], allow_pickle=False), sys.argv[3]
settings = json.loads((model / "tokenizer_config.json").read_text())
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
tokenizer.enable_truncation(settings["context_length"])
tokenizer.enable_padding(length=settings["context_length"], pad_id=settings["pad_id"])
encoded = tokenizer.encode(text)
session = onnxruntime.InferenceSession(str(model / "onnx" / "text.onnx"), providers=["CPUExecutionProvider"])
feeds = {"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}
tokens, mask = session.run(["query_tokens", "query_mask"], feeds)
query = tokens[0][mask[0]]  # [counted tokens, width], of length 1


def scores(branch: str) -> np.ndarray:
    """The mean over words of the best token, for every clip."""
    token_TD = store[f"{branch}_TD"].astype(np.float32)
    if f"{branch}_scale_T" in store:
        token_TD *= store[f"{branch}_scale_T"][:, None]
    return np.maximum.reduceat(query @ token_TD.T, store[f"{branch}_offsets"][:-1], axis=1).mean(axis=0)


branches = {"f": ["frame"], "v": ["video"], "fv": ["frame", "video"]}[json.loads((model / "config.json").read_text())["interaction"]]
total = sum(scores(branch) for branch in branches)
offsets, names = store["clip_ids_offsets"], store["clip_ids_bytes"].tobytes()
for place in np.argsort(-total)[:10]:
    print(f"{total[place]:.3f}  {names[offsets[place] : offsets[place + 1]].decode('utf-8', 'surrogatepass')}")
