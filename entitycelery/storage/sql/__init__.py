"""The SQL store: one module per noun, the differences between databases in `dialects`."""
