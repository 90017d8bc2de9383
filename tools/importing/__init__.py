"""What `tools.import_weights` is made of: one reader for each layout."""
