"""What to ship, and the published figures and words that help with the choice."""
