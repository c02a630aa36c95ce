"""TFRecord logs and RLDS data sets, without TensorFlow."""
