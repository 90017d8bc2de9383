"""Exact means of what a system computes per example, mostly its validation losses."""

import numpy as np

from uvim_like.evaluators.base import Example, Metric

CODE_USE = "code_use"  # (K,) share of each word in an example's code, reported as a summary over the evaluation


def make() -> Metric:
  """Mean over examples of every output, a number or a vector per example; {"name": mean, …}, nothing without examples."""
  return Metric(init=dict, update=update, merge=merge, compute=compute,
                protocol="mean over examples, padding left out")


def update(stats: dict, output: Example, target: Example) -> dict:
  """Stats {name: (sum, count)} with one more example."""
  del target
  return merge(stats, {name: (np.asarray(value, np.float64), 1) for name, value in output.items()})


def merge(a: dict, b: dict) -> dict:
  """Sums and counts of both."""
  both = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a.keys() & b.keys()}
  return {**a, **b, **both}


def compute(stats: dict) -> dict[str, float]:
  """{name: mean}; the word frequencies become `code_summary`, other vectors are left out."""
  means = {name: total / count for name, (total, count) in stats.items()}
  numbers = {name: float(mean) for name, mean in means.items() if np.ndim(mean) == 0}
  return numbers | (code_summary(means[CODE_USE]) if CODE_USE in means else {})


def code_summary(frequency: np.ndarray) -> dict[str, float]:
  """How much of a dictionary a whole evaluation uses; a batch alone would say too little.

  Args:
    frequency: (K,) share of each word among all words written; sums to 1.

  Returns:
    {"code_used": share of the words that occur, "code_dead": number of those that never do, "code_perplexity": of the
    distribution, between 1 and K}.
  """
  used = frequency[frequency > 0]
  return {"code_used": used.size / frequency.size, "code_dead": float(frequency.size - used.size),
          "code_perplexity": float(np.exp(-np.sum(used * np.log(used))))}
