"""What to ship, and the published figures and words that help to choose."""
