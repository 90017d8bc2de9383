"""Raw example -> training example: the preprocessing strings, the sources and the pipeline; the only TensorFlow here."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: its start-up notices are no news
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its own rounding would make preprocessing differ between CPUs
