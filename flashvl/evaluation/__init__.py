"""The model card's benchmarks and one's own questions: prompts, answers, scores."""
