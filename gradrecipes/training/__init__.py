"""Where the pipeline meets Keras: the instrumented train step, its attachment to a fit, RecipeModel."""
