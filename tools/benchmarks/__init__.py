"""What `tools.bench` measures, a module a system."""
