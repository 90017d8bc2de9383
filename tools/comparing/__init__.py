"""What `tools.compare` trains."""
