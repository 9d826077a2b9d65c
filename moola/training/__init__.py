"""From labelled windows to a trained Jade: batches, loss, stages, checkpoints."""
