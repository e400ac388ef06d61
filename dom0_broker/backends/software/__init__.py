"""A secure element in Python, behind CardConnection."""
