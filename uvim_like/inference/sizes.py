"""At which size a picture enters a network whose preprocessing leaves that open; all sizes are (height, width)."""

MAX_SIDE = 1281   # pixels, the largest side that kMaX-DeepLab trains with

Size = tuple[int, int]


def capped(size: Size, most: int = MAX_SIDE) -> Size:
  """A size whose longer side is `most` at the most, sides in their ratio."""
  longest = max(size)
  if longest <= most:
    return size
  return max(1, round(size[0] * most / longest)), max(1, round(size[1] * most / longest))


def on_canvas(size: Size, canvas: Size, windows: int = 0) -> Size:
  """A size that AiT's solver takes: as it is where it fits, as an evaluation's pictures do; else that of the canvas.

  Args:
    size: of the picture.
    canvas: of `views.canvas_of`.
    windows: square windows side by side that cover the width together; 0 for none. Then the height becomes the
      canvas's, and the width keeps its ratio as far as the windows reach (NYU's 480x640 stays what it is).
  """
  if not windows:
    return size if size[0] <= canvas[0] and size[1] <= canvas[1] else canvas
  if size[0] == canvas[0] and size[0] <= size[1] <= windows * size[0]:
    return size
  width = round(size[1] * canvas[0] / size[0])
  return canvas[0], min(max(width, canvas[0]), windows * canvas[0])
