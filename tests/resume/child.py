"""A training in a process that was forked from one that had imported everything: run by path, not imported.

Given from outside: `words` (after `python -m train`), `devices` (virtual ones), `cache` (folder of compiled programs), `output`
and `errors` (files), `before` (code to run first).
"""

import os
import sys
import traceback

given = globals()
for number, path in ((1, given["output"]), (2, given["errors"])):
  os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given['devices']}"

import jax  # noqa: E402

import train  # noqa: E402

jax.config.update("jax_compilation_cache_dir", given["cache"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
exec(given["before"])
try:
  status = train.main(given["words"])
except BaseException:
  traceback.print_exc()
  status = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
