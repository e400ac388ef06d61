"""Byte streams between machines and processes: the only I/O of the library."""
