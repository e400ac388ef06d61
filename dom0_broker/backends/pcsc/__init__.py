"""Cards in readers, over PC/SC: known by what they are, never by the reader that they are in."""
