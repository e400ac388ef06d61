"""`python -m benchmarks`: our costs beside those of Python's `ssl`, measured in one run on one machine."""
