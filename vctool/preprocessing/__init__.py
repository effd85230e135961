"""What happens to text and frames before a model sees them, without torch."""
