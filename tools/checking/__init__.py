"""What `tools.make_data check` looks at."""
