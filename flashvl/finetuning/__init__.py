"""Fine-tuning on pictures and conversations of one's own: data, batches, many devices, the run."""
