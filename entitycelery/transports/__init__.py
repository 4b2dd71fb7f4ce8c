"""Ways to wake a worker: a broker, or a folder where there is no broker."""
