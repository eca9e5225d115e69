"""A run: session, runner, recorder, progress and engines."""
