"""Depthwise convolution that is fast on every backend."""

import jax
import jax.numpy as jnp

Array = jax.Array


def depthwise_conv(x: Array, kernel: Array) -> Array:
  """Each channel convolved with its own kernel: stride 1, zero padding that keeps the size, no bias.

  On CPU, where the compiler's grouped convolution is slow, as a sum of shifted products: for 7x7 on (1, 41, 41, 192)
  1.9 ms against 53 ms.

  Args:
    x: (B, H, W, C).
    kernel: (kh, kw, 1, C), odd sides, of the type of x.

  Returns:
    (B, H, W, C).
  """
  return jax.lax.platform_dependent(x, kernel, cpu=_shifted, default=_grouped)


def _grouped(x: Array, kernel: Array) -> Array:
  pad = [(side // 2, side // 2) for side in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                      feature_group_count=x.shape[-1])


def _padded(x: Array, size: tuple[int, ...]) -> Array:
  padded = jnp.pad(x, ((0, 0), (size[0] // 2,) * 2, (size[1] // 2,) * 2, (0, 0)))
  return jax.lax.optimization_barrier(padded)  # else padding, and what makes x, are computed again for every tap


@jax.custom_vjp
def _shifted(x: Array, kernel: Array) -> Array:
  h, w = x.shape[1:3]
  padded = _padded(x.astype(jnp.float32), kernel.shape)
  taps = [[padded[:, i:i + h, j:j + w] * kernel[i, j, 0] for j in range(kernel.shape[1])]
          for i in range(kernel.shape[0])]
  return sum(map(sum, taps)).astype(x.dtype)


def _shifted_forward(x, kernel):
  return _shifted(x, kernel), (x, kernel)


def _shifted_backward(saved, grad):
  """Autodiff's own form pads once for every tap (124 ms instead of 13 ms in the case above)."""
  x, kernel = saved
  kh, kw = kernel.shape[:2]
  grad = grad.astype(jnp.float32)
  padded = _padded(x.astype(jnp.float32), kernel.shape)
  ones = jnp.ones(x.shape[0] * x.shape[1] * x.shape[2])

  def of_tap(place):  # a loop, since unrolled sums compile for seconds
    view = jax.lax.dynamic_slice(padded, (0, place // kw, place % kw, 0), x.shape)
    return ones @ (view * grad).reshape(-1, x.shape[-1])

  to_kernel = jax.lax.map(of_tap, jnp.arange(kh * kw)).reshape(kernel.shape).astype(kernel.dtype)
  return _shifted(grad, kernel[::-1, ::-1].astype(jnp.float32)).astype(x.dtype), to_kernel


_shifted.defvjp(_shifted_forward, _shifted_backward)
