"""The forms that `tools.export` writes, and their checks."""
