"""Generated from proto/vmtoken/v1 by scripts/generate.py."""
