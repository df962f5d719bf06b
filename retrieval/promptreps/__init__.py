"""PromptReps: dense and sparse representations from one prompt to any instruct model, without training."""
