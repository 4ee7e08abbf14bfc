"""Fake engines do not outlive the tests of a file."""

from tests.threads import threads_end  # noqa: F401
