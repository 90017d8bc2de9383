"""What the page of `tools.report` shows: runs, pictures, tables."""
