"""ParamSpec, which Python 3.9 has not."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 10):
    from typing import ParamSpec
else:
    from typing_extensions import ParamSpec

__all__ = ["ParamSpec"]
