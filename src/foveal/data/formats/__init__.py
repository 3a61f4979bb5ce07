"""Files that hold images and labels: each format opened as a ``DataSet`` of random-access sources."""
