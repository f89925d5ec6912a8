"""Starts Treadle's processes for tests, talks to them, and cleans up after them."""
