"""The book's tasks: networks, data sets, and the sizes of the profiles."""
