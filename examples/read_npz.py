"""Reads weights exported with --format=npz: python read_npz.py WEIGHTS.npz  (numpy and ml_dtypes)."""
import sys

import ml_dtypes
import numpy as np

with np.load(sys.argv[1]) as stored:
  arrays = {name: stored[name] for name in stored.files}
for name, array in arrays.items():
  if array.dtype == "V2":  # numpy has no name for bfloat16
    arrays[name] = array.view(ml_dtypes.bfloat16)
  print(f"{name:70} {str(arrays[name].dtype):9} {arrays[name].shape}")
print(f"{sum(array.size for array in arrays.values()):,} numbers")
