"""The TensorFlow-free data provider: contents, order, resume, host layouts, padding, errors."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.training import batches

N = 10


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (N, 4, 6, 3), np.uint8)
  image[:, 0, 0, 0] = np.arange(N)
  np.savez(tmp_path / "train.npz", image=image, labels=rng.integers(0, 9, (N, 4, 6, 2)).astype(np.int16),
           **{"image/id": np.arange(N) + 100, "depth": rng.random((N, 3, 5)).astype(np.float16)})
  np.savez(tmp_path / "validation.npz", image=image[:3], labels=np.zeros((3, 4, 6, 2), np.int16),
           **{"image/id": np.arange(3), "depth": np.ones((3, 3, 5), np.float16)})
  return tmp_path


def open_train(folder, **kwargs):
  return batches.train_batches(**{"dataset": "npz", "split": "train", "pp": "decode|resize(512)", "batch_size": 4,
                                  "data_dir": folder} | kwargs)


def take(iterator, count):
  got = [next(iterator) for _ in range(count)]
  iterator.close()
  return got


def test_types_and_values(folder):
  batch, = take(open_train(folder), 1)
  assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
      "image": (np.float32, (4, 4, 6, 3)), "labels": (np.int32, (4, 4, 6, 2)), "_index": (np.int64, (4,))}
  with np.load(folder / "train.npz") as data:
    np.testing.assert_allclose(batch["image"], data["image"][batch["_index"]] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch["labels"], data["labels"][batch["_index"]])


@pytest.mark.parametrize("dtype, shape, want", [
    (np.uint8, (2, 4, 4, 3), np.float32), (np.uint8, (2, 4, 4, 2), np.int32), (np.float16, (2, 4, 4, 1), np.float32),
    (np.uint16, (2, 4, 4, 2), np.int32), (np.int64, (2, 4, 4, 1), np.int32), (np.float64, (2, 4, 4, 3), np.float32)])
def test_label_dtypes(dtype, shape, want):
  got = batches.convert("labels", np.full(shape, 3, dtype))
  assert got.dtype == want
  np.testing.assert_allclose(got, 3 / 127.5 - 1 if (dtype, shape[-1]) == (np.uint8, 3) else 3, rtol=1e-6)


def test_every_epoch_is_a_permutation_of_its_own(folder):
  order = np.concatenate([b["_index"] for b in take(open_train(folder), 10)])
  epochs = order.reshape(4, N)
  assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  other = np.concatenate([b["_index"] for b in take(open_train(folder, seed=1), 3)])
  assert other.tolist() != order[:12].tolist()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_any_step_is_reached_directly(folder, prefetch):
  through = take(open_train(folder, pp="flip_lr"), 8)
  late = take(open_train(folder, pp="flip_lr", start_step=5, prefetch=prefetch), 3)
  for a, b in zip(through[5:], late):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_hosts_make_up_the_global_batch(folder):
  whole = take(open_train(folder, pp="flip_lr"), 3)
  parts = [take(open_train(folder, pp="flip_lr", process_index=i, process_count=2), 3) for i in range(2)]
  for step in range(3):
    for key in whole[step]:
      np.testing.assert_array_equal(whole[step][key], np.concatenate([p[step][key] for p in parts]))
  with pytest.raises(UserError, match="does not divide among 3 processes"):
    open_train(folder, process_count=3)


def test_mirror_takes_labels_along(folder):
  with np.load(folder / "train.npz") as data:
    image, labels = data["image"] / 127.5 - 1, data["labels"]
  mirrored = []
  for batch in take(open_train(folder, pp=" flip_lr "), 10):
    for i, index in enumerate(batch["_index"]):
      flip = slice(None, None, 1 if np.allclose(batch["image"][i], image[index], atol=1e-6) else -1)
      np.testing.assert_allclose(batch["image"][i], image[index][:, flip], atol=1e-6)
      np.testing.assert_array_equal(batch["labels"][i], labels[index][:, flip])
      mirrored.append(flip.step == -1)
  assert 8 < sum(mirrored) < 32


def test_batch_larger_than_the_split(folder):
  batch, = take(open_train(folder, split="validation", batch_size=7), 1)
  assert sorted(batch["_index"][:3]) == [0, 1, 2] and len(batch["_index"]) == 7


def test_evaluation_pads_and_keeps_truth_raw(folder):
  got = list(batches.eval_batches(dataset="npz", split="train[1:7]", pp="", batch_size=4, data_dir=folder,
                                  target_keys=("image/id", "labels")))
  assert [b["_mask"].tolist() for b, _ in got] == [[1, 1, 1, 1], [1, 1, 0, 0]]
  assert [b["_index"].tolist() for b, _ in got] == [[0, 1, 2, 3], [4, 5, -1, -1]]
  assert got[1][0]["image"].shape == (4, 4, 6, 3) and not got[1][0]["image"][2:].any()
  assert [len(targets) for _, targets in got] == [4, 2]
  target = got[1][1][0]
  assert target["image/id"] == 105 and target["depth"].dtype == np.float16 and target["depth"].shape == (3, 5)
  assert target["labels"].dtype == np.int16


def test_evaluation_on_hosts_has_equal_counts(folder):
  def run(i, count):
    return list(batches.eval_batches(dataset="npz", split="train", pp="", batch_size=8, data_dir=folder,
                                     process_index=i, process_count=count))

  whole, parts = run(0, 1), [run(i, 2) for i in range(2)]
  assert [len(p) for p in parts] == [2, 2]
  assert [len(t) for _, t in parts[1]] == [4, 0] and parts[1][1][0]["_mask"].sum() == 0
  for step, (batch, targets) in enumerate(whole):
    np.testing.assert_array_equal(batch["image"], np.concatenate([p[step][0]["image"] for p in parts]))
    assert [t["image/id"] for t in targets] == [t["image/id"] for p in parts for t in p[step][1]]


def test_splits(folder):
  def count(split):
    return batches.num_examples(dataset="npz", split=split, data_dir=folder)

  assert (count("train"), count("train[:25%]"), count("train[4:6]+validation")) == (10, 2, 5)
  examples = batches.load_split(dataset="npz", split="train[9:]+validation", data_dir=folder)
  np.testing.assert_array_equal(examples.truth["image/id"], [109, 0, 1, 2])


def test_errors(folder):
  def fails(message, **kwargs):
    with pytest.raises(UserError, match=message):
      open_train(folder, **kwargs)

  fails("unknown split 'trian'; did you mean 'train'", split="trian")
  fails("needs the preprocessing pipeline", dataset="coco/2017_panoptic")
  fails("needs the folder", data_dir=None)
  fails("no .npz files", data_dir=folder / "none")
  with pytest.raises(UserError, match="unknown array 'image/ids'; did you mean 'image/id'"):
    batches.eval_batches(dataset="npz", split="train", batch_size=2, data_dir=folder, target_keys=("image/ids",))
  image = np.zeros((2, 4, 4, 3), np.uint8)
  for name, arrays, message in [
      ("a", {"labels": image}, "no array 'image'"),
      ("b", {"image": image, "labels": image[:1]}, "differ in their number"),
      ("c", {"image": image, "labels": image[..., 0]}, r"'labels' has the shape \(2, 4, 4\)"),
      ("d", {"image": image[..., :1], "labels": image}, r"'image' has the shape"),
      ("e", {"image": image}, "training needs an array 'labels'"),
      ("f", {"image": image, "labels": np.zeros((2, 4, 4, 1), bool)}, "dtype bool"),
      ("g", {"image": image.astype(np.int16), "labels": image}, "uint8, or floats"),
      ("h", {"image": image, "labels": image, "n": np.float32(1)}, "'n' is a scalar")]:
    np.savez(folder / f"{name}.npz", **arrays)
    fails(message, split=name)
  (folder / "i.npz").write_bytes(b"no zip")
  fails("not a readable", split="i")
  np.savez(folder / "j.npz", image=image, labels=image)
  fails("different arrays", split="train+j")


def test_a_changed_file_is_read_again(folder):
  before = batches.num_examples(dataset="npz", split="train", data_dir=folder)
  np.savez(folder / "train.npz", image=np.zeros((2, 4, 4, 3), np.uint8))
  assert (before, batches.num_examples(dataset="npz", split="train", data_dir=folder)) == (N, 2)


def test_prefetching_passes_errors_on_and_ends_its_thread():
  def make(step):
    if step == 3:
      raise KeyError("broken example")
    return step

  def running():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]

  iterator = batches.ahead(make, start=1, depth=4)
  assert [next(iterator), next(iterator)] == [1, 2] and running()
  with pytest.raises(KeyError, match="broken example"):
    next(iterator)
  assert not running()
  iterator = batches.ahead(lambda step: step, start=0, depth=2)
  next(iterator)
  iterator.close()
  assert not running()


def test_no_tensorflow():
  code = ("import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None\n"
          "import uvim_like.training.batches, uvim_like.training.optim, uvim_like.training.checkpoint\n"
          "import uvim_like.weights\n"
          "assert not [m for m in sys.modules if m.startswith('tensorflow.')]")
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_evaluation_can_be_repeated(tmp_path):
  """A training evaluates many times with the same batches."""
  np.savez(tmp_path / "train.npz", image=np.zeros((5, 4, 4, 3), np.uint8), labels=np.zeros((5, 4, 4, 1), np.float32))
  found = batches.eval_batches(dataset="npz", split="train", batch_size=2, data_dir=tmp_path)
  first, second = ([batch["_index"].tolist() for batch, _ in found] for _ in range(2))
  assert first == second == [[0, 1], [2, 3], [4, -1]] and len(found) == 3
