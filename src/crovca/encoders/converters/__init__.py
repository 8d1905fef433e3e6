"""From the checkpoints that transformers cannot read to folders that it can, exactly."""
