"""What is done to batches of images before the network sees them; two back ends that agree."""
