"""Fine-tuning a backbone on labelled texts."""
