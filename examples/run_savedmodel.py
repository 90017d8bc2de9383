"""Runs what --format=savedmodel exports: python run_savedmodel.py MODEL OUT_DIR PICTURE…  (TensorFlow alone)."""
import pathlib
import sys

import numpy as np
import tensorflow as tf

folder, out, *files = map(pathlib.Path, sys.argv[1:])
model = tf.saved_model.load(str(folder))
out.mkdir(parents=True, exist_ok=True)
for file in files:
  if file.suffix == ".npy":  # uint8 (H, W, 3), or (B, H, W, 3)
    pixels = np.load(file)
    outputs = model.signatures["serving_default"](pixels=tf.constant(pixels.reshape(-1, *pixels.shape[-3:])))
  else:  # the bytes of a JPEG, PNG, GIF or BMP file
    outputs = model.signatures["encoded"](encoded=tf.constant(file.read_bytes()))
  outputs = {name: value.numpy() for name, value in outputs.items()}
  np.savez(out / file.stem, **outputs)
  print(file.name, {name: value.shape for name, value in outputs.items()})
