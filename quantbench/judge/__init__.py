"""Judgements of results: runs against a baseline, and two variants on one model."""
