"""What both ends of the wire share: the error taxonomy, and tensors to and from numpy."""
