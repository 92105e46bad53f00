"""What training and serving share: decoding, preprocessing, data folders, the model and its artifact."""
