"""Wire-to-wire bench of the gateway: a mock upstream and a load generator in C, peers, and the table."""
