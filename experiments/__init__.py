"""The binaries that train the paper's networks, and the parts that they share."""
