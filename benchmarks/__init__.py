"""Timings, made by hand; nothing here runs in the tests."""
