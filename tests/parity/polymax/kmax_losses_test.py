"""Losses of kMaX-DeepLab and of depth maps against the authors' programs and definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops import dense_losses, mask_losses
from uvim_like.systems.polymax.heads import panoptic_segmentation as panoptic
from uvim_like.systems.polymax.heads import semantic_segmentation as semantic

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5
NAMES = {"mask_id": "mask_id_cross_entropy_loss", "dice": "pq_style_loss_mask_dice_term",
         "class": "pq_style_loss_class_term", "instance": "instance_discrimination_loss"}


def predictions_of(case) -> list[Prediction]:
  """The final prediction and the auxiliary ones, flattened over pixels."""
  count = len({key.split("/")[2] for key in case.arrays if key.startswith("in/y_pred/aux")})
  prefixes = ["in/y_pred/", *(f"in/y_pred/aux{i}/" for i in range(count))]
  return [Prediction(*(jnp.asarray(case[f"{prefix}{name}"]) for name in
                       ("pixel_space_mask_logits", "pixel_space_normalized_feature", "transformer_class_logits")))
          for prefix in prefixes]


def labels_of(case) -> np.ndarray:
  """(B, H, W, 2) in our numbering: 0 = void, class + 1; instances from 1."""
  classes = case["in/y_true/semantic_gt"]
  void = (classes == case.config["ignore"]) | (classes < 0) | (classes >= case.config["ncls"])
  return np.stack([np.where(void, 0, classes + 1), case["in/y_true/thing_id_mask_gt"] + 1], axis=-1).astype(np.int32)


def matched(case, predictions):
  """The masks at the pixels of the loss, matched on the final prediction."""
  stride, config = case.config["gt_stride"], case.config
  return panoptic.match(predictions[0], jnp.asarray(labels_of(case)[:, ::stride, ::stride]), num_classes=config["ncls"],
                        num_things=config["nthing"], max_instances=config["max_thing"])


def terms_of(case, predictions):
  """[{term: (B,)} unweighted] with the stored samples of pixels."""
  weights = {"instance": 0.0}
  fixed, all_terms = matched(case, predictions), []
  for prediction, sample in zip(predictions, case["in/instance_sample_indices"], strict=True):
    terms = panoptic.matched_terms(prediction, fixed, jax.random.key(0), weights=weights)
    terms["instance"] = mask_losses.instance_discrimination(panoptic.flatten(prediction.features), fixed.masks,
                                                            jnp.asarray(sample))
    all_terms.append(terms)
  return all_terms


def weights_of(case) -> dict:
  stored = case.config["loss_weights"]
  return {"mask_id": stored["mask_id"], "dice": stored["pq"], "class": stored["pq"], "instance": stored["inst"]}


def test_thing_classes_come_first_in_these_files(peers):
  for case in peers("kmax_losses"):
    assert case.config["thing_ids"] == list(range(case.config["nthing"]))


def test_masks_are_theirs(peers):
  for case in peers("kmax_losses"):
    predictions = predictions_of(case)
    masks = jax.jit(lambda p: matched(case, p).masks)(predictions)  # noqa: B023
    theirs = case["out/gt/pixel_gt_mask_id_one_hot"]
    index = np.where(theirs.sum(-1) > 0, theirs.argmax(-1), -1)
    slots = case["out/permutation_full"][:, :theirs.shape[-1]].argmax(-1)
    exists = case["out/gt/mask_gt_non_void_mask"] > 0
    # Masks are numbered differently; the query that each pixel belongs to is not.
    ours = np.take_along_axis(np.asarray(masks.slots), np.maximum(masks.index, 0), axis=1)
    ours = np.where(np.asarray(masks.index) < 0, -1, ours)
    wanted = np.where(index < 0, -1, np.take_along_axis(slots, np.maximum(index, 0), axis=1))
    np.testing.assert_array_equal(ours, wanted)
    assert sorted(map(int, (masks.slots >= 0).sum(1))) == sorted(map(int, exists.sum(1)))


def test_every_term(peers):
  for case in peers("kmax_losses"):
    predictions, weights = predictions_of(case), weights_of(case)
    for i, terms in enumerate(jax.jit(lambda p: terms_of(case, p))(predictions)):  # noqa: B023
      for name, stored in NAMES.items():
        key = f"out/loss/{stored}" if i == 0 else f"out/loss/aux_{i - 1}{stored}"
        case.close(weights[name] * terms[name], key, TOLERANCE)
    stride = case.config["gt_stride"]
    index = jnp.asarray(labels_of(case)[:, ::stride, ::stride, 0]) - 1
    branch = semantic.cross_entropy(jnp.asarray(case["in/y_pred/semantic_logits"]), index)
    case.close(case.config["loss_weights"]["semantic"] * branch, "out/loss/semantic_loss", TOLERANCE)


def test_gradients(peers):
  for case in peers("kmax_losses"):
    predictions, weights = predictions_of(case), weights_of(case)

    def objective(final, case=case, rest=predictions[1:], weights=weights):
      terms = terms_of(case, [final, *rest])[0]
      return sum(jnp.mean(weights[name] * terms[name]) for name in NAMES)

    grads = jax.jit(jax.grad(objective))(predictions[0])
    case.close(grads.logits, "out/grad/mask_logits", TOLERANCE)
    case.close(grads.classes, "out/grad/class_logits", TOLERANCE)
    case.close(grads.features, "out/grad/pixel_feature", TOLERANCE)


def test_fixed_matching(peers):
  for case in peers("kmax_losses"):
    labels, logits = jnp.asarray(case["in/fixed/labels"]), jnp.asarray(case["in/fixed/mask_logits"])
    masks = mask_losses.identity_masks(labels, logits.shape[-1])
    found = mask_losses.overlaps(logits, masks)
    case.close(mask_losses.mask_id_cross_entropy(logits, masks), "out/fixed/mask_id_ce", TOLERANCE)
    weight = case["in/fixed/dice_weight"]
    case.close(mask_losses.mask_dice(found, masks, weight), "out/fixed/mask_dice", TOLERANCE)
    np.testing.assert_array_equal(weight > 0, masks.slots >= 0)
    diagonal = 1 - np.diagonal(found.dice(smooth=1.0), axis1=1, axis2=2)
    case.close(diagonal, "out/fixed/mask_dice_per_channel", TOLERANCE)


def test_depth(peers):
  for case in peers("kmax_losses"):
    pred, target = case["in/depth/pred"], case["in/depth/gt"]
    silog = dense_losses.silog(pred, target, target > 0)
    relative = dense_losses.relative_squared(pred, target, target > 0)
    case.close(silog, "out/depth/silog", TOLERANCE)
    case.close(relative, "out/depth/relative_squared", TOLERANCE)
    case.close(silog + relative, "out/depth/sum", TOLERANCE)


# --- definitions stored with the metrics ------------------------------------------------------------------------------


def test_silog_and_relative_error_of_the_metrics_set(stored_metrics):
  for case, arrays in stored_metrics("loss_depth"):
    pred, gt, rtol = arrays["pred"], arrays["gt"], case["tol"]["rtol"]
    expected = case["expected"]
    np.testing.assert_allclose(dense_losses.silog(pred, gt, gt > 0), expected["deeplab2_silog_error_per_image"], rtol=rtol)
    np.testing.assert_allclose(dense_losses.relative_squared(pred, gt, gt > 0),
                               expected["deeplab2_relative_squared_per_image"], rtol=rtol)
    pooled = pred.reshape(1, -1), gt.reshape(1, -1), gt.reshape(1, -1) > 0
    for name, value in expected["silog_ait_batch"].items():
      focus = float(name.removeprefix("lambda_"))
      np.testing.assert_allclose(np.sqrt(dense_losses.silog(*pooled, focus=focus))[0], value, rtol=rtol, err_msg=name)


def test_multiscale_gradient(stored_metrics):
  for case, arrays in stored_metrics("loss_msg"):
    pred, gt, rtol = arrays["pred"], arrays["gt"], case["tol"]["rtol"]
    for log in (True, False):
      stored = case["expected"][f"{'log' if log else 'linear'}/valid_px_per_image"]
      got = dense_losses.gradient_matching(pred, gt, gt > 0, log=log, scales=len(stored["per_scale"]))
      np.testing.assert_allclose(np.mean(got), stored["sum"], rtol=rtol)
      first = dense_losses.gradient_matching(pred, gt, gt > 0, log=log, scales=1)
      np.testing.assert_allclose(np.mean(first), stored["per_scale"][0], rtol=rtol)


def test_dice_of_the_metrics_set(stored_metrics):
  for case, arrays in stored_metrics("loss_dice"):
    logits, one_hot = arrays["logits"], arrays["onehot"]
    logits, one_hot = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (logits, one_hot))
    index = np.where(one_hot.sum(-1) > 0, one_hot.argmax(-1), -1)
    masks = mask_losses.identity_masks(jnp.asarray(index), logits.shape[-1])
    found = mask_losses.overlaps(jnp.asarray(logits), masks)
    diagonal = 1 - np.diagonal(found.dice(smooth=1.0), axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, case["expected"]["maxdeeplab_softmax"], **case["tol"])
