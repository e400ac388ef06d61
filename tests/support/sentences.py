"""What a person reads is one sentence: a capital, something to say, a full stop."""

from __future__ import annotations

import re

_SENTENCE = re.compile(r"[A-Z].*[^\s.;:,]\.", re.DOTALL)


def is_sentence(message: str) -> bool:
    """Whether a message has the shape of a sentence."""
    return _SENTENCE.fullmatch(message) is not None
