"""Two datasets in one batch: rows, order, what is missing, hosts and resume, evaluation, mistakes."""

import numpy as np
import pytest

from pp_ops import mixture, pipeline
from uvim_like.errors import UserError

DEPTH = "depth_labels|random_flip|value_range(-1, 1)|keep('image', 'labels')"
THINGS = ("panoptic_masks|instances(keypoints=False)|random_flip|box_masks(4)|pad_instances(5)|value_range(-1, 1)|"
          "keep('image', 'boxes', 'box_labels', 'box_masks')")
PLACE = dict(dataset="4*scenes/mini; 2*scenes/mini", split="train[:5]; validation[:3]", pp=f"{DEPTH}; {THINGS}")


def take(count, **options):
  batches = pipeline.train_batches(**{**PLACE, "batch_size": 6} | options)
  found = [next(batches) for _ in range(count)]
  batches.close()
  return found


@pytest.fixture(scope="module")
def whole():
  return take(4)


def test_rows_of_both_and_zeros_where_a_part_has_nothing(whole):
  for batch in whole:
    assert batch["task_id"].tolist() == [0, 0, 0, 0, 1, 1] and batch["task_id"].dtype == np.int32
    assert batch["image"].shape == (6, 64, 64, 3) and batch["labels"].shape == (6, 64, 64, 1)
    assert batch["labels"][:4].any((1, 2, 3)).all() and not batch["labels"][4:].any()
    assert batch["box_labels"][4:].any(1).all() and not batch["box_labels"][:4].any()
    assert batch["box_masks"].dtype == np.uint8 and not batch["boxes"][:4].any()
  assert sorted(np.concatenate([b["_index"][:4] for b in whole])[:5]) == [0, 1, 2, 3, 4]
  assert sorted(np.concatenate([b["_index"][4:] for b in whole])[:3]) == [0, 1, 2]


def test_any_step_and_any_hosts_give_the_same_batches(whole):
  late = take(2, start_step=2)
  hosts = [take(3, process_index=i, process_count=2) for i in range(2)]
  for key in whole[0]:
    for i in range(2):
      np.testing.assert_array_equal(late[i][key], whole[2 + i][key], err_msg=key)
    for step in range(3):
      joined = [np.concatenate([host[step][key][rows] for host in hosts]) for rows in (slice(2), slice(2, 3))]
      np.testing.assert_array_equal(np.concatenate(joined), whole[step][key], err_msg=key)


def test_an_epoch_is_a_pass_over_the_first_part():
  assert pipeline.num_examples(dataset="4*scenes/mini; 2*scenes/mini", split="train[:8]; validation[:3]") == 12


def test_evaluation_goes_through_both():
  batches = pipeline.eval_batches(**PLACE, batch_size=4)
  seen = list(batches)
  assert len(batches) == len(seen) == 3
  assert [b["task_id"][0] for b, _ in seen] == [0, 0, 1] and [len(t) for _, t in seen] == [4, 1, 3]
  assert all(set(b) == set(seen[0][0]) for b, _ in seen)


@pytest.mark.parametrize("change, words", [
    (dict(dataset="scenes/mini; 2*scenes/mini"), "'scenes/mini' is not COUNT.DATASET, such as 60.nyu"),
    (dict(split="train"), "has 2 parts, but its split has 1"), (dict(pp=DEPTH), "its preprocessing string has 1"),
    (dict(batch_size=7), "batch_size 7 is not the sum"), (dict(process_count=4), "do not divide among 4 processes"),
    (dict(pp=f"{DEPTH}; {THINGS.replace('value_range(-1, 1)|', '')}"), "'image' is .* uint8 here and .* float32")])
def test_mistakes(change, words):
  with pytest.raises(UserError, match=words):
    pipeline.train_batches(**{**PLACE, "batch_size": 6} | change)


def test_parts_of_a_name():
  first, second = mixture.parts("60*nyu:/a; 4 * coco_instances", "train;train2017", "a|b;c", data_dir="/d", seed=3)
  assert (first.rows, first.dataset, first.split, first.pp, first.data_dir, first.seed) == (
      60, "nyu:/a", "train", "a|b", "/d", 3)
  assert (second.rows, second.dataset, second.split, second.pp) == (4, "coco_instances", "train2017", "c")
  assert second.seed != 3 and not mixture.is_mixture("coco/2017_panoptic")
