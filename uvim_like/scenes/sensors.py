"""What a camera and a depth sensor make of a perfect picture: noise, and holes where no depth returns."""

import numpy as np

MAX_RANGE = 9.5  # metres; beyond it the sensor sees nothing
REFERENCE_WIDTH = 128  # pixel distances below are meant at this image width


def photograph(color: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
  """(H, W, 3) uint8 of a picture in 0..1: a random exposure within ±10 % and Gaussian noise of 3 levels."""
  gain = np.float32(rng.uniform(0.9, 1.1))
  noise = rng.normal(0, 0.012, color.shape).astype(np.float32)
  return (np.clip(color * gain + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


def measure_depth(depth: np.ndarray, cosine: np.ndarray, glass: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
  """(H, W) float16 metres as a structured-light sensor would give them; 0 where there is no reading.

  Noise grows with the square of the distance (σ = .0012 + .0019 (z - .4)² m). Holes: the projector's shadow at the
  left of near objects, grazing surfaces, out of range, glass, blobs, speckle, the image border.

  Args:
    depth: (H, W) exact planar depth, metres.
    cosine: (H, W) of the angle between ray and normal.
    glass: (H, W) bool, window panes.
  """
  sigma = 0.0012 + 0.0019 * np.maximum(depth - 0.4, 0) ** 2
  noisy = depth + sigma * rng.normal(0, 1, depth.shape).astype(np.float32)
  speckle = rng.uniform(size=depth.shape).astype(np.float32)
  hole = _projector_shadow(depth) | (np.abs(cosine) < 0.1) | (depth > MAX_RANGE)
  hole |= _blobs(speckle) | (glass & (speckle < 0.6)) | (speckle < 0.004)
  scale = depth.shape[1] / REFERENCE_WIDTH
  left, right, top = (round(rng.uniform(low, high) * scale) for low, high in ((0, 2), (1, 3), (0, 1)))
  hole[:, :left] = hole[:, depth.shape[1] - right:] = hole[:top] = True
  return np.where(hole, 0, np.maximum(noisy, 0.01)).astype(np.float16)


def _projector_shadow(depth) -> np.ndarray:
  """Pixels whose light path is cut by something at least 15 % nearer within the disparity to their right."""
  scale = depth.shape[1] / REFERENCE_WIDTH
  reach = np.maximum(2, np.round(6 / depth)) * scale
  nearest = np.full_like(depth, np.inf)
  for shift in range(1, int(np.ceil(4 * scale)) + 1):
    if shift >= depth.shape[1]:
      break
    candidate = np.where(shift <= reach[:, :-shift], depth[:, shift:], np.inf)
    np.minimum(nearest[:, :-shift], candidate, out=nearest[:, :-shift])
  return nearest < 0.85 * depth


def _blobs(noise) -> np.ndarray:
  """Connected spots on 1.5 % of the pixels: where blurred noise is highest."""
  radius = max(1, round(3 * noise.shape[1] / REFERENCE_WIDTH))
  blurred = box_blur(noise, radius).ravel()
  rank = min(int(0.985 * blurred.size), blurred.size - 1)
  return (blurred > np.partition(blurred, rank)[rank]).reshape(noise.shape)


def box_blur(image: np.ndarray, radius: int) -> np.ndarray:
  """Mean over a square of 2·radius + 1 pixels; the border repeats. (H, W) → (H, W)."""
  for _ in range(2):
    padded = np.pad(image, ((radius + 1, radius), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0, dtype=np.float64)
    image = ((total[2 * radius + 1:] - total[:-2 * radius - 1]) / (2 * radius + 1)).astype(np.float32).T
  return image


def encode_normals(normal: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """Unit normals (H, W, 3) in camera axes as uint8, (n + 1)/2·255 rounded; (0, 0, 0) where not valid (H, W)."""
  levels = np.clip((normal + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
  return np.where(valid[..., None], levels, 0).astype(np.uint8)
