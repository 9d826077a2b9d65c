"""What a model is worth: metrics beside their baselines, gates, predictions, report."""
