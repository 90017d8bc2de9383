"""Reads what --format=safetensors exports: python read_safetensors.py WEIGHTS.safetensors  (numpy, ml_dtypes)."""
import json
import sys

import ml_dtypes
import numpy as np

with open(sys.argv[1], "rb") as file:
  header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
  data = file.read()
card = json.loads(header.pop("__metadata__")["card"])
types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "I32": np.int32, "U32": np.uint32}
for name, entry in header.items():
  first, last = entry["data_offsets"]
  array = np.frombuffer(data[first:last], types[entry["dtype"]]).reshape(entry["shape"])
  print(f"{name:70} {str(array.dtype):9} {array.shape}")
print({key: card[key] for key in ("system", "task", "trained", "normalisation", "classes")})
