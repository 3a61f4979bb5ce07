"""TensorFlow's own files, read and written without TensorFlow and without torch."""
