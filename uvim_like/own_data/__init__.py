"""Somebody's own folder of pictures and labels: its files, splits, tables, mistakes, and what a config must know."""
