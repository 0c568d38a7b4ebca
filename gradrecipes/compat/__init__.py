"""Every private name, patch and stack inspection of Keras and TensorFlow that this package relies on."""
