"""AiT's tokenizers against stored runs of the authors' code: codes, maps, losses, gradients, two codebook updates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.ait_vqvae import Model
from uvim_like.systems.ait import pretrained, vqvae
from uvim_like.systems.base import Vars
from uvim_like.trees import flatten_names

pytestmark = pytest.mark.parity
RTOL = 1e-5  # relative to the largest value


class Case:
  """One stored tokenizer: arrays, config, and ours with the same weights."""

  def __init__(self, path):
    self.name = path.stem
    with np.load(path) as data:
      self.io = {key: data[key] for key in data.files}
    self.config = json.loads(path.with_suffix(".json").read_text())["config"]
    sizes = self.config["vae_class"]
    self.kind = "masks" if sizes["use_norm"] else "depth"
    self.params, self.state = pretrained.from_torch(
        {key.removeprefix("sd/"): value for key, value in self.io.items() if key.startswith("sd/")})
    self.model = Model(
        input_size=self.io["in/img"].shape[2:], ratio=sizes["downsample_ratio"], first_width=sizes["hidden_dim"],
        num_res_blocks=sizes["num_resnet_blocks"], dict_size=sizes["num_tokens"], codeword_dim=sizes["codebook_dim"],
        signed=sizes["use_norm"])
    self.variables = Vars(jax.tree.map(jnp.asarray, self.params), jax.tree.map(jnp.asarray, self.state))

  def __getitem__(self, key):
    return self.io[key]

  def close(self, got, key, tolerance=RTOL):
    want = self.io[key]
    assert np.shape(got) == want.shape, f"{self.name}: {key}: {np.shape(got)} is not {want.shape}"
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-6),
                               err_msg=f"{self.name}: {key}")

  def batch(self, key):
    """The batch that holds maps (B, 1, H, W): depth as labels, masks as those of B images with one object each."""
    maps = self.io[key]
    if self.kind == "depth":
      return {"labels": maps.transpose(0, 2, 3, 1)}
    return {"box_masks": maps, "box_labels": np.ones((len(maps), 1), np.int32), "boxes": np.zeros((len(maps), 1, 4))}

  def nhwc(self, key):
    return jnp.asarray(self.io[key].transpose(0, 2, 3, 1))

  def step(self, variables, seen, label):
    """((loss, LossOut), gradients) of a training step: the stored masked input stands in for our random masking."""
    def objective(params):
      out = vqvae.loss(variables.replace(params=params), (), self.batch(label), jax.random.key(0), True,
                       model=self.model, kind=self.kind, w_commitment=vqvae.COMMITMENT, learns=True)
      return out.loss, out

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(vqvae, "zero_patches", lambda key, x, **_: self.nhwc(seen))
      return jax.jit(lambda: jax.value_and_grad(objective, has_aux=True)(variables.params))()


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("ait_vqvae*.npz")]


def test_encoder_and_codes(cases):
  for case in cases:
    encode = jax.jit(lambda x, case=case: vqvae.apply(case.model, case.variables, x, method="encode"))
    code = encode(case.nhwc("in/img"))
    case.close(np.moveaxis(code.z, -1, 1), "out/z")
    np.testing.assert_array_equal(code.code, case["out/indices"], err_msg=case.name)
    np.testing.assert_array_equal(code.code.reshape(len(code.code), -1), case["out/ait_encode"], err_msg=case.name)
    case.close(np.moveaxis(code.quantized, -1, 1), "out/quantized")


def test_decoder(cases):
  for case in cases:
    decode = jax.jit(lambda code, case=case: vqvae.apply(case.model, case.variables, code, method="decode"))
    maps = decode(jnp.asarray(case["out/indices"], jnp.int32))[..., 0]
    case.close(maps[:, None], "out/decode")
    case.close(maps, "out/ait_decode")


def test_soft_decoder(cases):
  for case in cases:
    logits = case.nhwc("in/soft_logits")
    variables = {"params": case.variables.params, "state": case.variables.state}
    maps = jax.jit(lambda x, v=variables, case=case: case.model.apply(
        v, x, case.config["ait_class_tau"], method="decode_soft"))(logits)
    case.close(maps[..., 0], "out/decode_soft")


def test_losses_in_evaluation(cases):
  for case in cases:
    out = jax.jit(lambda case=case: vqvae.loss(
        case.variables, (), case.batch("in/img"), jax.random.key(0), False, model=case.model, kind=case.kind,
        w_commitment=vqvae.COMMITMENT, learns=True))()
    case.close(out.loss, "out/eval_total_loss")
    commitment = float(np.mean(out.parts["loss_commitment"]))
    case.close(out.loss - vqvae.COMMITMENT * commitment, "out/eval_recon_loss")


def test_training_steps(cases):
  """The second step starts from the first one's codebook and the same weights."""
  for case in cases:
    variables = case.variables
    for step, key, label in (("step1", "in/train_input1", "in/img"), ("step2", "in/train_input2", "in/train_input2")):
      if f"out/{step}/total_loss" not in case.io:
        continue
      (total, out), grads = case.step(variables, key, label)
      case.close(total, f"out/{step}/total_loss")
      case.close(np.mean(out.parts["loss_commitment"]) * vqvae.COMMITMENT, f"out/{step}/vq_loss")
      code = vqvae.apply(case.model, variables, case.nhwc(key), method="encode")
      np.testing.assert_array_equal(code.code, case[f"out/{step}/indices"], err_msg=case.name)
      for theirs, ours in pretrained.STATE.items():  # dead codes reach 1e5: compared element by element
        np.testing.assert_allclose(out.state[ours], case[f"out/{step}/_vq_vae.{theirs}"], rtol=RTOL, atol=1e-6,
                                   err_msg=f"{case.name} {step} {ours}")
      gradients_are(case, grads, step)
      variables = variables.replace(state=out.state)


def gradients_are(case, grads, step):
  """Norms of all gradients, and those that are stored in full, under the release's names."""
  names = {}
  for key in case.io:
    if key.startswith("sd/") and not key.startswith("sd/_vq_vae"):
      names[key.removeprefix("sd/")] = key
  ours = dict(flatten_names(grads))
  for kind in ("gradnorm", "grad"):
    stored = {key: value for key, value in case.io.items() if key.startswith(f"out/{step}/{kind}/")}
    assert stored or kind == "grad", case.name
    for key, want in stored.items():
      theirs = key.removeprefix(f"out/{step}/{kind}/")
      got = as_theirs(case, ours, theirs)
      if kind == "gradnorm":
        np.testing.assert_allclose(np.linalg.norm(got), want, rtol=2e-5, atol=1e-7, err_msg=f"{case.name}: {key}")
      else:
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max(), err_msg=f"{case.name}: {key}")


def as_theirs(case, ours, theirs):
  """Our gradient of the release's parameter `theirs`, in its layout: found by converting an index of the parameters."""
  index = {key.removeprefix("sd/"): np.full(value.shape, number, np.float32) for number, (key, value) in enumerate(
      (key, value) for key, value in case.io.items() if key.startswith("sd/"))}
  number = index[theirs].flat[0]
  params, _ = pretrained.from_torch(index)
  name = next(name for name, leaf in flatten_names(params) if leaf.flat[0] == number)
  value = np.asarray(ours[name])
  if value.ndim == 1:
    return value
  return value[::-1, ::-1].transpose(2, 3, 0, 1) if "/up" in name else value.transpose(3, 2, 0, 1)
