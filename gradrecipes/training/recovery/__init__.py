"""The way back from a training that is lost: sound copies, when to return to one, and what a killed run takes up."""
