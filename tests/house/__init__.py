"""Tests about the house itself: its layout, what it installs, and the tools that keep the other tests honest."""
