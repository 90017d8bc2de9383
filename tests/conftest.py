"""Shared by all tests: CPU with full float32 products, eight virtual devices, quick and cached compilation."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the suite's time is compilation of programs that run once, on small arrays: LLVM need not optimise them.
FLAGS = {"xla_force_host_platform_device_count": 8, "xla_backend_optimization_level": 0,
         "xla_llvm_disable_expensive_passes": "true"}
GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([GIVEN, *(f"--{name}={value}" for name, value in FLAGS.items() if name not in GIVEN)])

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
  """Folder of stored outputs of the authors' code; `GOLDEN_DIR` names another set of the same format."""
  return pathlib.Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))
