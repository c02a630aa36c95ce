"""Learning: configuration, fine-tuning, checkpoints, tracking, publishing, evaluation."""
