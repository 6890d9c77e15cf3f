"""Hypothesis profiles of the core's tests: the same examples in every run, so that a failure is everybody's."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("core")
