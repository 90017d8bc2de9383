"""What `tools.predict` reads, writes and draws."""
