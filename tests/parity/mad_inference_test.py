"""MAD's masked inference against a stored run of the authors' program: stages, averages, boxes, masks, keypoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.mad import Model
from uvim_like.systems.mad import inference
from uvim_like.systems.mad.pretrained import from_detectron
from uvim_like.systems.mad.settings import CODE_FORM
from uvim_like.systems.mad.vocabulary import MASK_TOKEN, Vocabulary

pytestmark = pytest.mark.parity
TOLERANCE = 3e-5
NAMES = {"boxes": "det", "masks": "seg", "keypoints": "keypoint", "captions": "caption"}


class Case:
  """One stored run, decoded again with its weights; `inputs` holds what every call of the decoder saw."""

  def __init__(self, path):
    with np.load(path.with_suffix(".npz")) as data:
      self.arrays = {key: data[key] for key in data.files}
    config = json.loads(path.read_text())["config"]
    self.stages = {task: tuple(config["stages"][name]) for task, name in NAMES.items()}
    self.vocabulary = Vocabulary(
        classes=config["nc"], bins=config["nb"], text=config["words"], queries=config["nq"], mask_side=config["ms"],
        joints=config["nk"], caption_length=config["cap"], prompt_tokens=6)
    model = Model(vocab_size=self.vocabulary.size, max_length=config["seqpos"], backbone={"name": "stem"},
                  width=config["d"], num_heads=config["heads"], mlp_dim=config["ff"], encoder_layers=config["enc"],
                  decoder_layers=config["dec"])
    state = {key.removeprefix("sd/"): value for key, value in self.arrays.items() if key.startswith("sd/")}
    params, rest = from_detectron(state, num_heads=config["heads"])
    assert not rest
    tree = {"params": jax.tree.map(jnp.asarray, params)}
    features = jnp.asarray(self.arrays["in/features"]).transpose(0, 2, 3, 1)
    picture = model.apply(tree, features, ~jnp.asarray(self.arrays["in/img_mask"]), method="encode_features")
    self.inputs = []

    def decode(tokens, picture):
      self.inputs.append(np.asarray(tokens))
      return model.apply(tree, tokens, picture, method="decode")[-1]

    self.network = inference.Network(decode, lambda x, rows: model.apply(tree, x, rows, method="logits"), picture,
                                     self.vocabulary)

  def __getitem__(self, key):
    return self.arrays[key]

  def refine(self, task, prompts):
    """The last stage, after a comparison of every stage's input and average."""
    name, first = NAMES[task], len(self.inputs)
    draws = None
    if task == "captions":
      draws = [jnp.asarray(self[f"in/rand_like_draw{i}"]) for i in range(len(self.stages[task]) - 1)]
    columns = np.asarray(self.vocabulary.to_table(task, np.arange(self.vocabulary.width(task))))
    for stage in range(len(self.stages[task])):
      found = inference.refine(
          self.network, task, prompts, jax.random.key(0), stages={task: self.stages[task][:stage + 1]},
          order={**inference.ORDER, **CODE_FORM["predict"]["order"]}, combine="average", draws=draws,
          all_rows=task == "boxes")
      want = self[f"out/{name}/ensemble_after_stage{stage}"]
      if task != "boxes":
        want = want[..., columns]
      np.testing.assert_allclose(found.logits, want, atol=TOLERANCE, err_msg=f"{name} stage {stage}")
      np.testing.assert_array_equal(self.inputs[-1], self[f"out/{name}/stage{stage}_input_seq"])
      if stage:
        masked = self.inputs[-1][..., prompts.shape[-1]:] == MASK_TOKEN
        np.testing.assert_array_equal(masked, self[f"out/{name}/stage{stage}_seq_mask"])
    assert len(self.inputs) > first
    return found


@pytest.fixture(scope="module")
def cases(stored):
  """Every stored set."""
  return [Case(path) for path in stored("mad_inference*.json")]


def boxes_of(case):
  prompts = inference.prompts_of("boxes", None, case.vocabulary, len(case["in/image_hw"]), None)
  return inference.read_boxes(case.refine("boxes", prompts).logits, case.vocabulary, requantise=True, all_rows=True)


def batch_of(case, index):
  """One image whose canvas is the image itself."""
  height, width = case["in/image_hw"][index]
  return {"image": np.zeros((1, height, width, 3), np.float32)}


def test_boxes(cases):
  for case in cases:
    boxes = boxes_of(case)
    np.testing.assert_allclose(boxes.scores, case["out/det_scores"], atol=TOLERANCE)
    np.testing.assert_array_equal(boxes.classes - 1, case["out/det_classes"])
    for index, (height, width) in enumerate(case["in/image_hw"]):
      one = inference.Boxes(*(x[index:index + 1] for x in boxes))
      out = inference.box_output(batch_of(case, index), one, case.vocabulary, half_bin=False)
      pixels = np.asarray(out["boxes"])[0][:, [1, 0, 3, 2]] * [width, height, width, height]
      np.testing.assert_allclose(pixels, case["out/det_boxes_px"][index], rtol=1e-5, atol=1e-4)


def test_masks(cases):
  for case in cases:
    boxes = boxes_of(case)
    prompts = inference.prompts_of("masks", boxes, case.vocabulary, len(boxes.scores), None)
    found = inference.read_masks(case.refine("masks", prompts).logits, case.vocabulary)
    np.testing.assert_allclose(found, case["out/seg_fg_prob"], atol=TOLERANCE)


def test_keypoints(cases):
  for case in cases:
    boxes = boxes_of(case)
    prompts = inference.prompts_of("keypoints", boxes, case.vocabulary, len(boxes.scores), None)
    points = inference.read_keypoints(case.refine("keypoints", prompts).logits, case.vocabulary, half_bin=False)
    sizes = case["in/image_hw"][:, None, None, ::-1]
    np.testing.assert_allclose(points[..., :2] * sizes, case["out/keypoints"][..., :2], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(points[..., 2], case["out/keypoints"][..., 2], atol=TOLERANCE)


def test_captions(cases):
  for case in cases:
    prompts = inference.prompts_of("captions", None, case.vocabulary, len(case["in/image_hw"]), None)
    tokens = np.asarray(inference.end_caption(case.refine("captions", prompts).tokens[:, 0]))
    for ours, stored in zip(tokens, case["out/caption_ids"]):
      stored = [int(word) for word in str(stored).split()]
      np.testing.assert_array_equal(ours, stored + [0] * (len(ours) - len(stored)))
