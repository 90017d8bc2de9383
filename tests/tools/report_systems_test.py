"""What each system shows beside its predictions, from runs with random weights; kinds without specials show none."""

import numpy as np
import pytest

from tests.tools.report_runs import COUNT
from tools.reporting import report_ait, report_clusters, report_pictures, report_stages, report_systems
from tools.reporting.html import Picture
from tools.reporting.report_seen import Special
from uvim_like.errors import UserError


def test_every_system_predicts_its_kinds_of_outputs(seen):
  families = {name: [base.family for base in run.examples] for name, run in seen.items()}
  assert families == {"stage1": ["depth"], "regression": ["depth"], "stage2": ["depth"], "tokenizer": ["semantic"],
                      "solver": ["semantic"], "mad": ["objects", "captions"], "polymax": ["normals"]}
  for run in seen.values():
    for base in run.examples:
      assert len(base.image) == COUNT and all(len(x) == COUNT for x in base.predicted.values())
      assert np.abs(base.image).max() <= 1


def test_soft_and_hard_decoding(seen):
  ways = seen["solver"].extras["soft and hard"]["semantic"]
  assert [way.name for way in ways] == list(report_ait.WAYS)
  assert all(way.outputs["semantics"].shape == (COUNT, 64, 64) and way.seconds > 0 for way in ways)
  np.testing.assert_array_equal(ways[-1].outputs["semantics"], seen["solver"].examples[0].predicted["semantics"])
  section, = report_ait.ways_sections([seen["solver"]], 2)
  assert section.title == "Soft against hard: semantic segmentation (solver)"


def test_a_tokenizer_counts_its_words(seen):
  use = seen["tokenizer"].extras["codebook"]
  assert use.shape == (8,) and use.sum() == pytest.approx(1, abs=1e-5) and (use >= 0).all()


def test_stages_begin_like_the_whole(seen):
  stages = seen["mad"].extras["stages"]
  keypoints, = stages["objects"]
  captions, = stages["captions"]
  assert (keypoints.task, keypoints.ratios) == ("keypoints", (1.0, 0.7))
  assert (captions.task, captions.ratios) == ("captions", (1.0, 0.5))
  for stage, base in ((keypoints, seen["mad"].examples[0]), (captions, seen["mad"].examples[1])):
    assert stage.after[-1] is base.predicted and len(stage.after) == 2
  np.testing.assert_array_equal(keypoints.after[0]["boxes"], keypoints.after[1]["boxes"])
  assert not np.array_equal(keypoints.after[0]["keypoints"], keypoints.after[1]["keypoints"]), "a stage changed nothing"


def test_changed_words():
  assert report_stages.changed_words("a red box", "a blue box here") == (1, 3)
  assert report_stages.changed_words("", "a") == (0,) and report_stages.changed_words("a b", "a") == ()


def test_clusters_make_the_prediction(seen):
  base = seen["polymax"].examples[0]
  for i, clusters in enumerate(seen["polymax"].extras["cluster maps"]):
    assert clusters.maps.shape == (64, 64, 11) and clusters.count == 11
    np.testing.assert_allclose(clusters.maps.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(clusters.shares.sum(), 1, atol=1e-5)
    assert (np.diff(clusters.centers[:, 0]) >= 0).all(), "from left-facing to right-facing"
    mixed = clusters.maps @ clusters.centers
    mixed /= np.linalg.norm(mixed, axis=-1, keepdims=True)
    # The maps are upsampled here, the mixture in the prediction: alike, not equal.
    assert (mixed * base.predicted["normals"][i]).sum(-1).mean() > 0.99


def test_rows_of_maps(seen):
  base, clusters = seen["polymax"].examples[0], seen["polymax"].extras["cluster maps"][0]
  (label, first), (empty, second) = report_clusters.map_rows(base, clusters, 0)
  assert label.startswith("0–") and empty == "" and len(first) == 2 + 8 and len(second) == 2 + 3
  assert second[:2] == [None, None] and all(isinstance(cell, Picture) for cell in [*first, *second[2:]])
  assert first[2].caption.startswith("(") and "%" in first[2].caption


def test_specials_are_for_their_kinds(seen):
  assert not report_systems.SPECIALS.get("polymax.per_pixel") and not seen["regression"].extras
  assert report_systems.sections([seen["regression"]], 3) == []
  titles = [section.title for section in report_systems.sections(list(seen.values()), 3)]
  assert len(titles) == len(set(titles)) == 6, titles


def test_a_special_that_cannot_be_made_leaves_the_others(seen, monkeypatch):
  def refuse(run, found):
    raise UserError("no weights for it")
  monkeypatch.setitem(report_systems.SPECIALS, "stage I", (Special("a", refuse), Special("b", lambda run, found: 1)))
  loaded = type("Loaded", (), {"kind": "stage I"})
  assert report_systems.gather(loaded, ()) == ({"b": 1}, ["a: no weights for it"])


def test_runs_stand_side_by_side_on_the_same_images_only(seen):
  one, other = seen["tokenizer"], seen["solver"]
  assert len(report_pictures.predictions([one, other], rows=1, wanted=1)) == 1
  base = other.examples[0]
  cropped = base._replace(batch={**base.batch, "image": base.image[:, ::-1]})
  assert len(report_pictures.predictions([one, other._replace(examples=(cropped,))], rows=1, wanted=1)) == 2
  fewer = report_pictures.first(base, 2)
  section, = report_pictures.predictions([one, other._replace(examples=(fewer,))], rows=3, wanted=3)
  assert "The first 2 validation images" in section.pieces[0]


def test_errors_stand_beside_or_below():
  def row(count):
    return [("1", ["image", "truth", *"abcd"[:count]])], list("ABCD"[:count]), [[Picture(b"", x) for x in "abcd"[:count]]]

  rows, heads, errors = row(2)
  found, ((_, cells),) = report_pictures.laid_out(rows, heads, errors)
  assert found == ["A", "error", "B", "error"] and cells[:4] == ["image", "truth", "a", errors[0][0]]
  assert report_pictures.laid_out(rows, heads, errors, size="large") == (
      heads, [rows[0], ("error", [None, None, *errors[0]])])
  rows, heads, errors = row(4)
  assert len(report_pictures.laid_out(rows, heads, errors)[1]) == 2
  rows, heads, errors = row(1)
  _, ((_, cells),) = report_pictures.laid_out(rows, heads, errors, size="large")
  assert cells[-1] == Picture(b"", "a", size="large")
  assert report_pictures.laid_out(rows, heads, []) == (heads, rows)
