"""What a user is told of a flag that absl refuses."""

from __future__ import annotations

import re

from asvrg.errors import did_you_mean


def told(error: Exception) -> str:
    """The sentence of an error, with the nearest of the accepted names where a name is unknown.

    Args:
      error: of absl's flags, or of bad input.

    Returns:
      Its text; absl itself suggests flags for an unknown one, but no values.

    >>> told(ValueError("flag --method=svgr: value should be one of <sgd|svrg>"))
    'flag --method=svgr: value should be one of <sgd|svrg>; did you mean svrg?'
    """
    text = str(error)
    match = re.fullmatch(r"flag --\w+=(.*): value should be one of <(.*)>", text, re.DOTALL)
    return f"{text}{did_you_mean(match[1], match[2].split('|'))}" if match else text
