"""What scripts/check-osmo is made of."""
