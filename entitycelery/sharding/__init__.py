"""Which runner hosts which shard: assignment, leases, and what a runner does to keep its own."""
