"""UViM's stage II against stored outputs of the authors' program: logits, gradients, decoding, four updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.layers import sincos_2d
from uvim_like.systems.uvim import lm
from uvim_like.tasks import panoptic_segmentation
from uvim_like.trees import flatten_names

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def test_parameter_tree_is_the_published_one(stage_two_cases):
  for case in stage_two_cases:
    fresh = jax.eval_shape(case.end_to_end.init, jax.random.key(0), {"image": case["in/image"]})
    want = {name: leaf.shape for name, leaf in flatten_names(case.tree["params"])}
    assert {name: leaf.shape for name, leaf in flatten_names(fresh.params)} == want, case.name


def test_teacher_forcing(stage_two_cases):
  for case in stage_two_cases:
    encoded = case.apply(case["in/image"], method="encode")
    case.close(encoded, "out/encoded", TOLERANCE)
    logits = case.apply(case["in/labels"], encoded, method="decode")
    case.close(logits, "out/logits", TOLERANCE)
    written = case.apply(case["greedy/seqs"], encoded, method="decode")
    case.close(written, "greedy/teacher_forced_logits", TOLERANCE)


def test_loss_of_the_system(stage_two_cases):
  for case in stage_two_cases:
    out = jax.jit(case.system.loss, static_argnums=4)(case.variables, (), case.batch, jax.random.key(0), False)
    case.close(out.parts["loss_code"], "out/loss_per_example", TOLERANCE)
    case.close(out.loss, "out/loss", TOLERANCE)


def test_fixed_position_embedding(stage_two_cases):
  for case in stage_two_cases:
    model = case.model.clone(posemb_type="sincos2d")
    params = {name: leaf for name, leaf in case.variables.params.items() if not name.startswith("pos_embedding")}
    logits = case.apply(case["in/image"], case["in/labels"], model=model, params=params)
    case.close(logits, "out/logits_sincos2d", TOLERANCE)
    # The same through learned embeddings that hold the fixed values.
    fixed = {"pos_embedding_encoder": sincos_2d(case.grid, case.model.emb_dim),
             "pos_embedding_decoder": sincos_2d((1, case.model.seq_len), case.model.emb_dim)}
    case.close(case.apply(case["in/image"], case["in/labels"], params=params | fixed), "out/logits_sincos2d", TOLERANCE)


def test_greedy(stage_two_cases):
  for case in stage_two_cases:
    got = case.sequences()
    case.same(got["tokens"][:, 0], "greedy/seqs")
    case.close(got["scores"], "greedy/scores", len(case["greedy/seqs"][0]) * TOLERANCE)
    case.close(got["logprobs"], "greedy/logprobs", TOLERANCE)
    ordered = np.sort(case["greedy/teacher_forced_logits"], axis=-1)
    np.testing.assert_allclose((ordered[..., -1] - ordered[..., -2]).min(), case["greedy/margin"], atol=4 * TOLERANCE)
    cold = case.sequences(temperature=1e-7)  # the authors' "greedy"
    case.same(cold["tokens"][:, 0], "greedy/seqs")


def test_prompt(stage_two_cases):
  for case in stage_two_cases:
    got = case.sequences(prompts=jnp.asarray(case["prompt/prompts"]))
    case.same(got["tokens"][:, 0], "prompt/seqs")
    case.close(got["logprobs"], "prompt/logprobs", TOLERANCE)
    case.close(got["scores"], "prompt/scores", len(case["prompt/seqs"][0]) * TOLERANCE)


def test_end_token(stage_two_cases):
  for case in stage_two_cases:
    case.same(case.sequences(eos_token=int(case["eos/token"]))["tokens"][:, 0], "eos/seqs")


@pytest.mark.parametrize("name, options", [("T1", {}), ("n2", {"num_samples": 2})])
def test_seeded_sampling(stage_two_cases, name, options):
  for case in stage_two_cases:
    got = case.sequences(key=jax.random.PRNGKey(int(case["sample/key_seed"])), temperature=1.0, **options)
    case.same(got["tokens"], f"sample/{name}/seqs")
    case.close(got["logprobs"], f"sample/{name}/logprobs", TOLERANCE)
    case.close(got["scores"], f"sample/{name}/scores", len(case["in/labels"][0]) * TOLERANCE)


@pytest.mark.parametrize("name", ["T1", "n2", "topk", "topp"])
def test_reported_probabilities_are_those_of_the_unscaled_logits(stage_two_cases, name):
  for case in stage_two_cases:
    tokens = case[f"sample/{name}/seqs"]
    encoded = np.repeat(case["out/encoded"], tokens.shape[1], axis=0)
    flat = tokens.reshape(-1, tokens.shape[-1])
    logprobs = jax.nn.log_softmax(case.apply(flat, encoded, method="decode"))
    picked = jnp.take_along_axis(logprobs, jnp.asarray(flat)[..., None], -1).reshape(tokens.shape)
    case.close(picked, f"sample/{name}/logprobs", TOLERANCE)
    case.close(picked.sum(-1), f"sample/{name}/scores", tokens.shape[-1] * TOLERANCE)


def test_end_to_end(stage_two_cases):
  for case in stage_two_cases:
    batch = {"image": case["in/image"], "image_ctx": case["e2e/in/image_ctx"], "labels": case["e2e/in/labels"]}
    oracle = case.oracle.variables
    case.same(jax.jit(functools.partial(lm.targets, parts=case.parts))(oracle, batch), "e2e/code_plus1")
    predict = jax.jit(functools.partial(case.end_to_end.predict["predict"], forbidden=()))
    images = {name: batch[name] for name in ("image", "image_ctx")}
    got = predict(case.variables, oracle, images, jax.random.key(0))
    case.same(np.stack([got[name] for name in panoptic_segmentation.PLANES], axis=-1), "e2e/pred_from_greedy")


def test_gradients(stage_two_cases):
  for case in stage_two_cases:
    (loss, _), grads = case.value_and_grad(case.variables, case.batch)
    case.close(loss, "out/loss", TOLERANCE)
    case.grad_norms_are(grads, TOLERANCE)


def test_four_updates(stage_two_cases):
  for case in stage_two_cases:
    case.close([metrics["loss"] for _, metrics in case.train4], "train4/loss", TOLERANCE)
    case.param_norms_are(TOLERANCE)
