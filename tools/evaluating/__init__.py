"""What `tools.evaluate` reads and prints."""
