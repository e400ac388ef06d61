"""Applications on a card, written against CardChannel."""
