"""tarazu (ترازو, a balance scale): weighs ways of training a model against each other."""

__version__ = "0.2.0"
