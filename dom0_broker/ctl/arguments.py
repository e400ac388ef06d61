"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number_to(most: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from 1 on."""

    def number(text: str) -> int:
        if not (text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return number
