"""The forms that `tools.make_data` writes."""
