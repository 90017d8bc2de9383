"""Runs a model exported with --format=stablehlo: python run_stablehlo.py MODEL OUT_DIR PICTURE…  (jax and numpy)."""
import json
import pathlib
import sys

import numpy as np

folder, out, *files = map(pathlib.Path, sys.argv[1:])
sys.path.append(str(folder))  # flatbuffers, with which jax reads programs, lies there for machines without it
import jax.export  # noqa: E402

card = json.loads((folder / "card.json").read_text())
program = jax.jit(jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)
stored = np.load(folder / "weights.npz")
out.mkdir(parents=True, exist_ok=True)
types = {kind: jax.numpy.dtype(kind) for _, kind, _ in card["weights"]}
weights = [stored[name].view(types[kind]) if name in stored.files else np.zeros(shape, types[kind])  # never read
           for name, kind, shape in card["weights"]]
for file in files:
  if file.suffix == ".npy":  # uint8 (H, W, 3), or (B, H, W, 3)
    pixels = np.load(file)
  else:
    from PIL import Image, ImageOps
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    if card["largest"]:
      picture.thumbnail(card["largest"][::-1])
    pixels = np.asarray(picture.resize(card["size"][::-1]) if card["size"] else picture)
  outputs = program(weights, {"pixels": pixels.reshape(-1, *pixels.shape[-3:]), "seed": np.uint32(card["seed"])})
  np.savez(out / file.stem, **outputs)
  print(file.name, {name: value.shape for name, value in outputs.items()})
