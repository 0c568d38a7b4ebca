"""What a Keras model is: layers, connections, heads, losses."""
