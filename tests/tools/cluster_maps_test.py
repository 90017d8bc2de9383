"""Maps of clusters: which are shown, how they are titled, the sheet, and the command."""

import io

import numpy as np
import pytest
from PIL import Image

from tools import cluster_maps
from tools.reporting import figures_clusters, report_clusters
from tools.reporting.examples import Examples
from tools.reporting.report_clusters import Clusters


def decode(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_the_most_used_maps_keep_their_order():
  maps = np.zeros((2, 2, 4)) + [0.1, 0.5, 0.0, 0.4]
  assert figures_clusters.most_used(maps, 2).tolist() == [1, 3]
  assert figures_clusters.most_used(maps, 9).tolist() == [0, 1, 2, 3]


def test_a_map_goes_from_dark_to_its_tint():
  pixels = decode(figures_clusters.map_image(np.array([[0.0, 0.125, 0.5, 9.0]]), vmax=0.5, tint=(1, 0, 0)))
  row = pixels[0, ::pixels.shape[1] // 4][:4]
  assert row[0].max() < 30 and 120 < row[1, 0] < 150, "the root of a quarter is a half"
  np.testing.assert_array_equal(row[2], [255, 0, 0])
  np.testing.assert_array_equal(row[3], [255, 0, 0])
  assert figures_clusters.top(np.zeros((2, 2, 3))) > 0 and figures_clusters.top(np.zeros((0, 2, 3))) == 1


@pytest.mark.parametrize("family,centers,titles", [
    ("depth", [[1.234], [5.0]], ["1.23 m · 25%", "5.00 m · 75%"]),
    ("normals", [[0.0, 0.6, 0.8], [1, 0, 0]], ["(+0.0 +0.6 +0.8) · 25%", "(+1.0 +0.0 +0.0) · 75%"]),
    ("semantic", [[1.0], [2.0]], ["wall · 25%", "class 2 · 75%"]),
    ("panoptic", [[1.0], [2.0]], ["query 1 · 25%", "query 2 · 75%"])])
def test_centres_are_named(family, centers, titles):
  base = Examples("x", family, (), {}, {}, {}, {}, 0.0, names={0: "void", 1: "wall"})
  made = report_clusters.described(base, Clusters(np.zeros((2, 2, 2)), np.array(centers), np.array([.25, .75]), 2))
  assert [title.replace("\N{NO-BREAK SPACE}", " ") for title, _ in made] == titles
  assert (made[0][1] == made[1][1]) == (family in ("depth", "panoptic"))


@pytest.mark.parametrize("count,size", [(1, (5, 9)), (17, (40, 10))])
def test_a_sheet_holds_every_map(count, size):
  rng = np.random.default_rng(0)
  sheet = figures_clusters.Sheet([("image", rng.uniform(size=(*size, 3)))], rng.dirichlet(np.ones(count), size=size),
                                 [f"{k} $m" for k in range(count)], [figures_clusters.GREY] * count)
  one, two = (decode(figures_clusters.sheet_image(sheets, title="a $ title", dpi=40)) for sheets in ([sheet], [sheet] * 2))
  assert one.shape[1] == two.shape[1] and two.shape[0] > 1.5 * one.shape[0] and one.std() > 10


def test_the_command(workdirs, tmp_path, capsys, quick):
  out = tmp_path / "new" / "sheet.png"
  assert cluster_maps.main([f"--workdir={workdirs['polymax']}", f"--out={out}", "--rows=1"]) == 0
  assert decode(out.read_bytes()).shape[1] > 900 and "1 image\n" in capsys.readouterr().out
  for wrong, message in (
      ([f"--workdir={workdirs['regression']}", f"--out={out}"], "per-pixel regression"),
      ([f"--workdir={tmp_path / 'no'}", f"--out={out}"], "no such folder"),
      ([f"--workdir={workdirs['polymax']}", "--out=sheet"], "did you mean 'sheet.png'"),
      ([f"--workdir={workdirs['polymax']}", f"--out={out}", "--rows=0"], "--rows"),
      ([f"--workdir={workdirs['polymax']}", f"--out={out}", "--imag=a.png"], "did you mean '--image'")):
    assert cluster_maps.main(wrong) == 2
    line = capsys.readouterr().err
    assert line.startswith("cluster_maps: ") and line.count("\n") == 1 and message in line


def test_own_pictures_of_any_form(workdirs, tmp_path, capsys, quick):
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 255, (30, 70), np.uint8)).save(tmp_path / "grey, wide.png")
  Image.fromarray(rng.integers(0, 255, (90, 40, 3), np.uint8)).save(tmp_path / "tall.jpg")
  (tmp_path / "text.png").write_text("no picture")
  names = [str(tmp_path / name) for name in ("grey, wide.png", "text.png", "tall.jpg")]
  out = tmp_path / "own.png"
  assert cluster_maps.main([f"--workdir={workdirs['polymax']}", f"--out={out}", "--image", *names]) == 0
  said = capsys.readouterr()
  assert "2 images" in said.out and said.err.count("\n") == 1 and "text.png" in said.err
  assert decode(out.read_bytes()).std() > 10
  assert cluster_maps.main([f"--workdir={workdirs['polymax']}", f"--out={out}", "--image", names[1]]) == 2
  assert "none of the pictures" in capsys.readouterr().err
