"""UViM's stage I against stored outputs of the authors' program: forward, decoding, one training step, four updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.tasks import panoptic_segmentation
from uvim_like.trees import flatten_names

pytestmark = pytest.mark.parity
TOLERANCE = 5e-6


def top_gap(x, axis):
  """Smallest distance between the largest and the second largest value."""
  ordered = np.sort(x, axis=axis)
  return np.min(ordered.take(-1, axis) - ordered.take(-2, axis))


def test_parameter_tree_is_the_published_one(stage_one_cases):
  for case in stage_one_cases:
    fresh = jax.eval_shape(case.system.init, jax.random.key(0), case.batch)
    for part in ("params", "state"):
      want = {name: leaf.shape for name, leaf in flatten_names(case.tree[part])}
      assert {name: leaf.shape for name, leaf in flatten_names(getattr(fresh, part))} == want, case.name


def test_oracle(stage_one_cases):
  for case in stage_one_cases:
    stems, words, code, _, _ = case.forward
    assert sorted(case.under("out/stem/")) == sorted(stems)
    for name, stem in stems.items():
      case.close(stem, f"out/stem/{name}", TOLERANCE)
    case.close(words, "out/codewords", TOLERANCE)
    case.close(code.bottleneck, "out/bottleneck", TOLERANCE)
    case.same(code.code, "out/code")
    case.close(code.quantized, "out/bottleneck_q", TOLERANCE)
    products = np.asarray(code.bottleneck) @ np.asarray(words).T  # words have unit norm: half the squared distance
    np.testing.assert_allclose(top_gap(products, -1), case["out/code_margin"], atol=4 * TOLERANCE, err_msg=case.name)


def test_label_planes(stage_one_cases):
  for case in stage_one_cases:
    if "out/bins" in case.io:
      case.same(case.planes["depth"], "out/bins")
    if "out/onehot_sums" in case.io:
      valid = [((case.planes[k] >= 0) & (case.planes[k] < case.model.inputs[k][0])).sum(-1)
               for k in panoptic_segmentation.PLANES]
      case.same(np.stack(valid), "out/onehot_sums")


def test_logits_and_losses(stage_one_cases):
  for case in stage_one_cases:
    *_, logits, out = case.forward
    assert sorted(case.under("out/logits/")) == sorted(logits)
    for name, values in logits.items():
      case.close(values, f"out/logits/{name}", TOLERANCE)
    stored = case.under("out/per_example/")
    assert stored and set(stored) <= set(out.parts), f"{case.name}: {set(stored) - set(out.parts)}"
    for name in stored:
      case.close(out.parts[name], f"out/per_example/{name}", TOLERANCE)


def test_predictions(stage_one_cases):
  for case in stage_one_cases:
    for key in [key for key in case.io if key.startswith("out/pred") and "margin" not in key]:
      fraction = key.partition("minfrac")[2]
      prediction = case.predict(**({"task_options": {"min_fraction": float(fraction)}} if fraction else {}))
      if case.kind == "panoptic":
        case.same(np.stack([prediction[name] for name in panoptic_segmentation.PLANES], axis=-1), key)
      else:
        case.close(prediction[key.removeprefix("out/pred/")], key, TOLERANCE)
    if "out/pred_ins_margin" in case.io:
      gap = top_gap(np.asarray(case.forward[3]["instances"]), -2)
      np.testing.assert_allclose(gap, case["out/pred_ins_margin"], atol=2 * TOLERANCE)


@pytest.mark.parametrize("source", ["code", "continuous"])
def test_decoding_of_given_codes(stage_one_cases, source):
  for case in stage_one_cases:
    logits = case.decode(jnp.asarray(case[f"dec/{source}"]))
    for name, values in logits.items():
      stored = f"dec/logits_from_{source}/{name}"
      case.close(values[:len(case[stored])], stored, TOLERANCE)
    means = f"dec/logits_from_{source}_ex1_mean"
    if means in case.io:
      case.close([jnp.mean(logits[name][1]) for name in sorted(logits)], means, TOLERANCE)


def test_first_codeword_after_the_start_is_the_last_one(stage_one_cases):
  for case in stage_one_cases:
    given = np.array(case["dec/code"])
    wrapped = np.where(given < 0, given + case.model.dict_size, given)
    for name, values in case.decode(jnp.asarray(wrapped)).items():
      np.testing.assert_array_equal(values, case.decode(jnp.asarray(given))[name])


def test_training_pass(stage_one_cases):
  for case in stage_one_cases:
    (loss, out), grads = case.value_and_grad(case.variables, case.batch)
    case.close(loss, "train/loss", TOLERANCE)
    case.close(jnp.mean(out.parts["loss_commitment"]), "train/loss_commitment", TOLERANCE)
    task_loss = sum(jnp.mean(part) for name, part in out.parts.items()
                    if name.startswith("loss_") and name != "loss_commitment")
    case.close(task_loss, "train/loss_rec", TOLERANCE)
    for name in ("codebook_zeros_ratio", "codebook_max_ratio"):
      case.close(jnp.mean(out.parts[name]), f"train/{name}", TOLERANCE)
    for name, value in case.under("train/state/").items():
      np.testing.assert_allclose(out.state[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=case.name)
    case.grad_norms_are(grads, TOLERANCE)
    by_name = dict(flatten_names(grads))
    assert case.under("train/grad/")
    for name in case.under("train/grad/"):
      case.close(by_name[name], f"train/grad/{name}", TOLERANCE)


def test_splitting_of_unused_words(stage_one_cases):
  for case in stage_one_cases:
    state = {name: jnp.asarray(value) for name, value in case.under("split/in/").items()}
    assert set(np.flatnonzero(np.asarray(state["counts"]) < case.model.dict_min_count)) == set(case["split/unused"])
    (loss, out), _ = case.value_and_grad(case.variables.replace(state=state), case.batch)
    case.close(loss, "split/loss", TOLERANCE)
    case.close(out.state["counts"], "split/state/counts", 1e-6)
    # The copies carry a random factor of up to 1 ± 1e-3 from another stream.
    np.testing.assert_allclose(out.state["dictionary"], case["split/state/dictionary"], rtol=2.1e-3, atol=TOLERANCE,
                               err_msg=case.name)


def test_four_updates(stage_one_cases):
  for case in stage_one_cases:
    case.close([metrics["loss"] for _, metrics in case.train4], "train4/loss", TOLERANCE)
    case.close([state.vars.state["counts"] for state, _ in case.train4], "train4/counts", TOLERANCE)
    last = case.train4[-1][0].vars.params
    case.close(last["encoder_head"]["kernel"], "train4/encoder_head_kernel", TOLERANCE)
    case.param_norms_are(TOLERANCE)
