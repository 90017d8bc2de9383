"""kMaX-DeepLab as PolyMaX uses it: backbone, pixel decoder, k-means queries, mask predictor (arXiv 2311.05770, fig. 2)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvim_like.models.backbones import make_backbone
from uvim_like.models.deeplab import RATES, SemanticBranch, activated, normalised
from uvim_like.models.kmax_decoder import KMeansDecoder
from uvim_like.models.kmax_pixel_decoder import PixelDecoder
from uvim_like.models.kmax_predictor import MaskPredictor, Prediction
from uvim_like.models.norms import BatchNorm

Array = jax.Array
Dtype = Any
LEVELS = 4  # of a backbone that are used, at strides 4, 8, 16, 32


class Outputs(flax.struct.PyTreeNode):
  """What the network gives.

  Attributes:
    final: the prediction at stride 4.
    layers: one a layer of the transformer decoder, at strides 32, 16, 8.
    semantic: (B, h, w, C) float32 logits of the auxiliary branch at stride 4, or None.
  """
  final: Prediction
  layers: tuple[Prediction, ...]
  semantic: Array | None = None


class Model(nn.Module):
  """The network; what its queries predict is told by `num_classes` and `value_dim`.

  Attributes:
    backbone: {"name": of `backbones.PRESETS`, and fields that differ}; "kmax_resnet50" and the like are the paper's.
    num_queries: K.
    num_classes: of the class head, without "no object"; 0 for none (K = C segmentation, depth, normals).
    value_dim: numbers that a query stands for: 0, 1 (depth) or 3 (normals).
    semantic_classes: of the auxiliary semantic branch; 0 for none.
    image_stats: of the backbone's weights, in `deeplab.IMAGE_STATS`.
    dims, blocks, kinds, dilation: see `PixelDecoder`.
    layers, width, key_dim, mlp_dim, drop_path: see `KMeansDecoder`; drop path 0, the best hint there is for PolyMaX.
    hidden_dim, mask_dim: see `MaskPredictor`.
    branch_dim: channels of the semantic branch.
    momentum, epsilon: of all batch norms but the backbone's, which are fields of its own.
    frozen: these batch norms never change, for finetuning with batches too small for statistics.
    dtype: compute type; norms, softmax and logits are float32.
    remat: of the backbone.
    scan_layers: must be False: no two layers are alike.
  """
  backbone: Mapping[str, Any]
  num_queries: int
  num_classes: int = 0
  value_dim: int = 0
  semantic_classes: int = 0
  image_stats: str = "symmetric"
  dims: Sequence[int] = (512, 256, 128, 64)
  blocks: Sequence[int] = (1, 5, 1, 1)
  kinds: Sequence[str] = ("axial", "axial", "bottleneck", "bottleneck")
  dilation: int = 2
  layers: Sequence[int] = (2, 2, 2)
  width: int = 256
  key_dim: int = 128
  mlp_dim: int = 2048
  drop_path: float = 0.0
  hidden_dim: int = 256
  mask_dim: int = 128
  branch_dim: int = 256
  momentum: float = 0.99
  epsilon: float = 1e-3
  frozen: bool = False
  dtype: Dtype = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  def setup(self):
    norm = functools.partial(BatchNorm, self.momentum, self.epsilon, frozen=self.frozen, dtype=self.dtype)
    settings = dict(norm=norm, dtype=self.dtype)
    predictor = dict(hidden_dim=self.hidden_dim, mask_dim=self.mask_dim, num_classes=self.num_classes,
                     value_dim=self.value_dim)
    self.encoder = make_backbone(self.backbone, where="config.model.backbone", dtype=self.dtype, remat=self.remat)
    self.pixel_decoder = PixelDecoder(self.dims, self.blocks, self.kinds, self.dilation, **settings)
    self.transformer_decoder = KMeansDecoder(self.num_queries, self.layers, self.width, self.key_dim, self.mlp_dim,
                                             self.drop_path, predictor, **settings)
    self.predictor = MaskPredictor(**predictor, **settings)
    if self.semantic_classes:
      self.semantic_branch = SemanticBranch(self.semantic_classes, self.branch_dim,
                                            (self.branch_dim // 4, self.branch_dim // 8), RATES, **settings)

  def __call__(self, image: Array, train: bool = False) -> Outputs:
    """image (B, H, W, 3) in [-1, 1], sides of 32k + 1 pixels -> Outputs."""
    levels = self.encoder(normalised(image, self.image_stats), train=train)[-LEVELS:]
    *coarse, fine = self.pixel_decoder(levels, train)
    class_embedding, mask_embedding, layers = self.transformer_decoder(coarse, train)
    final = self.predictor(fine, mask_embedding, class_embedding, train)
    semantic = None
    if self.semantic_classes and (train or self.is_initializing()):
      lows = [activated(self.encoder, level) for level in (levels[1], levels[0])]
      semantic = self.semantic_branch(levels[3], lows, train)
    return Outputs(final, layers, semantic)
