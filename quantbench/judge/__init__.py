"""Judging results: runs against a baseline, and two variants of one model against each other."""
