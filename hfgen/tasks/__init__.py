"""The families of models, one file each: what a training step computes, and which pipeline it becomes."""
