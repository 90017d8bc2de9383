"""One real training step of the paper's configs on real TFDS datasets, built from local files by TFDS's own builders."""

import json
import pathlib

import pytest

import train

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SMALL = {"width": 32, "num_heads": 2, "mlp_dim": 48, "oracle_depth": 1, "base_model_depth": 1, "codeword_dim": 16,
         "code_len": 4, "dict_size": 8}


@pytest.mark.parametrize("config, block", [
    pytest.param("panoptic_stage1", "panoptic_val", marks=pytest.mark.slow), ("depth_stage1", "depth_val")])
def test_one_step(config, block, tfds_dir, tmp_path):
  """Dataset, preprocessing and evaluator are the config's own; resolution and network are small."""
  sizes = [f"--config.model.{key}={value}" for key, value in SMALL.items()]
  status = train.main([
      f"--config={ROOT}/configs/uvim/{config}.py:res=64", f"--workdir={tmp_path}", f"--config.data_dir={tfds_dir}",
      "--config.train_split=train", "--config.val_split=train", "--config.batch_size=8", "--config.num_epochs=None",
      "--config.total_steps=1", f"--config.evals=[('{block}', '{'nyu_depth' if 'depth' in config else 'coco_panoptic'}')]",
      "--config.log_training_steps=1", *sizes])
  assert status == 0
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  names = {name for line in lines for name in line}
  assert "loss" in names and ("nyu_depth/RMSE" if "depth" in config else "coco_panoptic/All_pq") in names
