"""Ways for the bytes of a round to get from sender ranks to receiver ranks."""
