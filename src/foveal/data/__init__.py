"""Reading examples: sources, the order they are drawn in, distortions, and the prefetching loader."""
