"""Storage: the ports, and the SQL store that implements them."""
