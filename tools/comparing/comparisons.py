"""What `tools.compare` trains: for each system the rows of its papers' tables, small enough for two CPU cores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
  """One training and the forms in which it is evaluated.

  Attributes:
    name: of its workdir, unique in the suite.
    config: file under configs/, without suffix, and its arguments after a colon.
    data: of DATA; rows with the same data share their images.
    overrides: of the config.
    forms: {what the table says: options of the prediction}; None: the config's own.
    needs: {config key: row whose workdir it names}, trained before.
  """
  name: str
  config: str
  data: str
  overrides: tuple[str, ...] = ()
  forms: Mapping[str, Mapping[str, Any] | None] = {"": None}
  needs: Mapping[str, str] = {}


# Words after `tools.make_data scenes --format=npz`. Objects as the `runlocal` configs take them: AiT 8 of them with masks of
# 32 x 32 for its tokenizer, MAD 12 with masks of 8 x 8.
DATA = {"depth": ("--task=depth",), "normals": ("--task=surface_normals",), "semantic": ("--task=semantic_segmentation",),
        "objects_ait": ("--task=instances", "--slots=8", "--box_mask=32"),
        "objects_mad": ("--task=instances", "--slots=12", "--box_mask=8")}


def _polymax() -> list[Row]:
  """Tables 2, 4 and 5 of PolyMaX: three tasks against DeepLabv3+, and the number of clusters for depth."""
  rows = []
  for task, clusters in (("depth", (16, 4, 8, 32)), ("normals", (8,)), ("semantic", (0,))):
    rows += [Row(f"{task}_k{k}" if k else task, f"polymax/{task}:scenes,runlocal" + (f",queries={k}" if k else ""), task)
             for k in clusters]
    rows.append(Row(f"{task}_deeplab", f"polymax/{task}:scenes,runlocal,per_pixel", task))
  return rows


SOFT = {"hard": dict(soft_feedback=False, soft_detokenizer=False), "soft decoder": dict(soft_detokenizer=False),
        "soft detokenizer": dict(soft_feedback=False), "both": {}}


def _ait() -> list[Row]:
  """Tables 1, 9, 11 and 12 of AiT on depth: soft tokens, auxiliary loss, parallel decoding, mask augmentation."""
  depth, shares = "ait/depth:scenes,runlocal", (0.5, 0.0, 0.3, 0.7)
  tokenizers = [Row(f"tokenizer_mask{share:g}", f"ait/vqvae_depth:scenes,runlocal,mask={share}", "depth") for share in shares]
  solvers = [Row(f"solver_mask{share:g}", depth, "depth", overrides=("solver.depth_aux=0.0",),
                 forms=SOFT if share == 0.5 else {"both": {}}, needs={"tokenizers.depth.model_init": tokenizer.name})
             for share, tokenizer in zip(shares, tokenizers)]
  needed = solvers[0].needs
  solvers += [Row("solver_aux", depth, "depth", forms={"both": {}}, needs=needed),
              Row("solver_parallel", f"{depth},parallel", "depth", needs=needed)]
  masks = Row("tokenizer_masks", "ait/vqvae_mask:scenes,runlocal", "objects_ait")
  instances = Row("instances_by_heart", "ait/instances:scenes,runlocal", "objects_ait", overrides=by_heart("object_val"),
                  needs={"tokenizers.instances.model_init": masks.name})
  return [*tokenizers, masks, *solvers, instances]


def by_heart(*evals: str, images: int = 64) -> tuple[str, ...]:
  """Overrides that train and evaluate on the same few images, never mirrored: whether a model can say all that it sees."""
  return ("pp_train=", f"train_split=train[:{images}]", "val_split=None",
          *(f"{name}.split=train[:{images}]" for name in evals))


MAD_EVALS = ("objects_val", "captions_val")


def _mad() -> list[Row]:
  """Table 2 of MAD row by row, its table 8, and 64 images by heart."""
  rows = [Row("by_heart", "mad/r50:scenes,runlocal", "objects_mad", overrides=by_heart(*MAD_EVALS)),
          Row("autoregressive", "mad/ar:scenes,runlocal", "objects_mad"),
          Row("parallel", "mad/r50:scenes,runlocal,parallel", "objects_mad"),
          Row("masked_training", "mad/r50:scenes,runlocal,one_stage", "objects_mad"),
          Row("masked_inference", "mad/r50:scenes,runlocal", "objects_mad")]
  for task in ("boxes", "masks", "keypoints", "captions"):
    rows += [Row(f"{task}_parallel", f"mad/r50:scenes,runlocal,parallel,task={task}", "objects_mad"),
             Row(f"{task}_masked", f"mad/r50:scenes,runlocal,task={task}", "objects_mad")]
  return rows


SUITES: Mapping[str, Sequence[Row]] = {"polymax": _polymax(), "ait": _ait(), "mad": _mad()}
