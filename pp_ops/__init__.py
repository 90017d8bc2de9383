"""Raw example -> training example: the preprocessing strings, the sources and the pipeline; the only TensorFlow here."""
